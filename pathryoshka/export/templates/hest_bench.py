"""HEST-bench: python tools/hest_bench.py <bench_config.yaml> [width]   (the config of HEST, its data downloaded)"""

import sys
from pathlib import Path

import torch
from hest.bench import benchmark

sys.path.insert(0, str(Path(__file__).resolve().parent))
from student import student


def main() -> None:
    model, transform = student(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    benchmark(model, transform, torch.float32, config=sys.argv[1])


if __name__ == "__main__":
    main()
