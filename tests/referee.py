import importlib.util, json
import msgspec

spec = importlib.util.spec_from_file_location("r", "/work/shared/tools/referee.py")
m = importlib.util.module_from_spec(spec)
spec.loader.exec_module(m)


def referee_faults(g, c, p):
    f = lambda v: json.loads(msgspec.json.encode(v))
    return m.check(f(g), f(c), f(p))["faults"]
