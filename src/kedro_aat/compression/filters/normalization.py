from dataclasses import dataclass
@dataclass(frozen=True)
class Normalization:
    dim: int
    groups: int
def recognize(module, sample): return None
def normalize_over_kept(module, n): pass
def set_kept(module, mask): pass
def restore(module): pass
