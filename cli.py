"""Run ideal-proxy from a checkout: `python3 cli.py search`, `python3 cli.py test`.

Standard library only. Where the interpreter lacks what the package needs, this makes `.venv` beside it, says what it
installs, and goes on in it; the second time it starts at once.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
NEEDED = {
    "run": ("typer", "torch", "transformers", "pydantic", "yaml", "scipy", "sklearn", "pandas", "pyarrow",
            "matplotlib", "rich", "accelerate", "psutil", "xxhash", "tokenizers", "safetensors", "lazy_loader",
            "duckdb", "filelock", "jinja2", "joblib"),
    "test": ("pytest", "hypothesis", "xdist"),
}  # fmt: skip
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CPU_TORCH = "torch==2.13.0"


def say(text):
    """Tell the user, on stderr, what set-up does."""
    print(f"ideal-proxy set-up: {text}", file=sys.stderr, flush=True)


def has(modules):
    """Tell whether this interpreter can import all the modules, without importing them."""
    return all(importlib.util.find_spec(module) is not None for module in modules)


def torch_requirement():
    """Choose where torch comes from.

    Returns:
        tuple: pip's arguments and a sentence that says why.
    """
    if has(["torch"]):
        return None, "keeping the torch that this Python has"
    nvidia = shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists()
    if nvidia:
        return ["torch>=2.11"], "NVIDIA driver found: torch with CUDA from the default index (several GB)"
    if platform.system() == "Darwin":
        return ["torch>=2.11"], "torch from the default index"
    try:
        with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=5):
            return ["torch>=2.11", "--index-url", CPU_INDEX], "no GPU: torch from PyTorch's CPU index (200 MB)"
    except (OSError, urllib.error.URLError, ValueError):
        return [CPU_TORCH], f"no GPU, PyTorch's CPU index out of reach: {CPU_TORCH} from the default index"


def stamp(extra):
    """Return the fingerprint of what an environment was made from."""
    return hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + extra.encode()).hexdigest()


def pip(python, *arguments):
    """Run pip in the environment, or end with one sentence."""
    quiet = ["--quiet", "--disable-pip-version-check", "--no-compile"]
    command = [str(python), "-m", "pip", "install", *quiet, *arguments]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
        sys.exit(
            "ideal-proxy set-up: pip could not install "
            f"{' '.join(a for a in arguments if not a.startswith('-'))}; "
            "see its message above, then run the same command again (what was installed is kept)"
        )


def environment(kind):
    """Make `.venv`, or finish it, and return its interpreter."""
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    extra = "test" if kind == "test" else ""
    mark = VENV / f"ready-{extra or 'run'}"
    if python.exists() and mark.exists() and mark.read_text() == stamp(extra):
        return python
    arguments, why = torch_requirement()
    if not python.exists():
        say(f"making {VENV}")
        site = ["--system-site-packages"] if arguments is None else []
        if subprocess.run([sys.executable, "-m", "venv", *site, str(VENV)], check=False).returncode != 0:
            sys.exit("ideal-proxy set-up: this Python cannot make a virtual environment; install its venv package")
    inside = subprocess.run([str(python), "-c", "import torch"], capture_output=True, check=False).returncode == 0
    if arguments and not inside:
        say(why)
        pip(python, *arguments)
    else:
        say("keeping the torch that is there")
    say("installing transformers, scipy, scikit-learn, pandas, matplotlib, typer and what they need (400 MB, minutes)")
    pip(python, "--editable", f"{ROOT}[{extra}]" if extra else str(ROOT))
    mark.write_text(stamp(extra))
    say("done")
    return python


def main():
    """Run the application, in this interpreter where it can, else in `.venv`."""
    if sys.version_info < (3, 11):  # noqa: UP036 (whoever runs this may have an older one)
        sys.exit(f"ideal-proxy needs Python 3.11 or newer; this is {platform.python_version()}")
    testing = sys.argv[1:2] == ["test"]
    kind = "test" if testing else "run"
    ready = has(NEEDED["run"]) and (not testing or has(NEEDED["test"]))
    if not ready:
        python = environment(kind)
        if os.environ.get("IDEAL_PROXY_BOOTSTRAPPED"):
            sys.exit(f"ideal-proxy set-up: {VENV} lacks packages that it should have; delete it and run this again")
        os.environ["IDEAL_PROXY_BOOTSTRAPPED"] = "1"
        os.execv(str(python), [str(python), str(ROOT / "cli.py"), *sys.argv[1:]])
    os.environ.pop("IDEAL_PROXY_BOOTSTRAPPED", None)
    if testing:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # a test process a core; more threads would get in their way
        side_by_side = ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "loadfile", "--no-loadscope-reorder"]
        command = [sys.executable, "-m", "pytest", *side_by_side, *sys.argv[2:]]
        sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)
    sys.path.insert(0, str(ROOT))
    from ideal_proxy.cli import main as application

    application(prog_name="ideal-proxy")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
