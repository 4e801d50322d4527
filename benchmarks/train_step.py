"""See the module of this name in `src/omnirouter/study/bench/`: its text is what --help prints.

python benchmarks/train_step.py           as a result is measured (the machine should be idle)
python benchmarks/train_step.py --quick   tiny sizes, to see that it runs
"""

from program import main

if __name__ == "__main__":
    main("train-step")
