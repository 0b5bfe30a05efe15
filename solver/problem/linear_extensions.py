"""Total orders of the units, of which every interval may be a stage."""

from skyfx.solver.problem.problem import Problem


def graph_order(problem: Problem) -> list[int]:
    """The order in which the model executes."""
    return list(range(problem.num_units))


def depth_first_extension(problem: Problem) -> list[int]:
    """Each unit just before the first that needs it, so that few values are alive at a time.

    It is the order in which a depth-first walk from the last units leaves them. Units that nothing
    reads and that read nothing follow what they follow in the model.
    """
    n = problem.num_units
    reads, readers = problem.reads, problem.readers
    alone = [not reads[i] and not readers[i] and i > 0 for i in range(n)]
    order: list[int] = []
    seen = [False] * n

    def leave(i: int) -> None:
        order.append(i)
        while i + 1 < n and alone[i + 1]:
            i += 1
            order.append(i)

    for root in (i for i in range(n) if not readers[i] and not alone[i]):
        walk = [(root, iter(reads[root]))]
        seen[root] = True
        while walk:
            i, rest = walk[-1]
            following = next((j for j in rest if not seen[j]), None)
            if following is None:
                walk.pop()
                leave(i)
            else:
                seen[following] = True
                walk.append((following, iter(reads[following])))
    return order
