"""A log file for each process of a job."""

import logging
import os
import socket
from pathlib import Path


def log_to(folder: str | os.PathLike[str], *, level: int = logging.INFO) -> Path:
    """Append what skyfx says in this process to a file of its own: plans, times, checkpoints.

    Lines carry the rank and the host, so that the files of all processes can be sorted into one.

    Args:
        folder: made if it is not there; several processes may share it.
        level: of what is kept.

    Returns:
        The file, `rank-0.log` in the first process and in one that is alone.
    """
    rank = os.environ.get("RANK", "0")
    path = Path(folder).absolute() / f"rank-{rank}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("skyfx")
    files = [x for x in logger.handlers if isinstance(x, logging.FileHandler)]
    same = [x for x in files if x.baseFilename == str(path)]
    handler = same[0] if same else logging.FileHandler(path, encoding="utf-8")
    logger.addHandler(handler)
    process = f"rank {rank} {socket.gethostname()}"
    form = f"%(asctime)s.%(msecs)03d {process} %(levelname)s %(name)s: %(message)s"
    handler.setFormatter(logging.Formatter(form, datefmt="%Y-%m-%d %H:%M:%S"))
    handler.setLevel(level)
    if logger.getEffectiveLevel() > level:
        logger.setLevel(level)
    return path
