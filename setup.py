"""Builds fastard._C with CMake: no torch needed, nvcc optional (FASTARD_CUDA=auto|on|off)."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
NOT_SHIPPED = ("results", "__pycache__", "conftest.py")


def tool(name):
    """The wheel's script beside this interpreter (a venv need not be activated), else PATH's."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise SystemExit(f"fastard: {name} was not found; `pip install {name}` provides it.")
    return found


def find_nvcc():
    """$CUDACXX, $CUDA_HOME, the nvidia wheels, PATH, /usr/local/cuda: the first that exists."""
    candidates = [os.environ.get("CUDACXX")]
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            candidates.append(os.path.join(os.environ[variable], "bin", "nvcc"))
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else []:
        candidates += sorted(map(str, Path(folder).glob("cu*/bin/nvcc")), reverse=True)
    candidates += [shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    return next((c for c in candidates if c and os.path.exists(c)), None)


def nvcc_environment(nvcc):
    """The 13.0 and 13.1 wheels' nvcc looks for cudart in a lib64 that they do not have."""
    env = dict(os.environ)
    lib = Path(nvcc).resolve().parents[1] / "lib"
    if (lib / "libcudart_static.a").exists():
        env["LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(lib), env.get("LIBRARY_PATH")]))
    return env


def works(nvcc):
    """Whether nvcc compiles and links a kernel; what it says otherwise goes to stderr."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cu"
        source.write_text("__global__ void k() {}\nint main() { k<<<1, 1>>>(); }\n")
        command = [nvcc, str(source), "-o", str(source.with_suffix(".out"))]
        try:
            return subprocess.run(command, env=nvcc_environment(nvcc)).returncode == 0
        except OSError as error:
            print(f"fastard: {nvcc}: {error}", file=sys.stderr)
            return False


def cuda_wish():
    wish = os.environ.get("FASTARD_CUDA", "auto").lower()
    if wish not in ("auto", "on", "off"):
        raise SystemExit(f"fastard: FASTARD_CUDA must be auto, on or off, not {wish!r}.")
    return wish


class CMakeBuild(build_ext):
    def build_extension(self, ext):
        import pybind11

        self.out = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        self.tmp = Path(self.build_temp).resolve()
        self.stamp = self.tmp / "configured.txt"
        self.common = [
            "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={self.out}", f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]  # fmt: skip
        wish, nvcc = cuda_wish(), find_nvcc()
        if wish == "off":
            self.cmake(["-DFASTARD_CUDA=OFF", "-DFASTARD_CUDA_REASON=FASTARD_CUDA=off"])
        elif nvcc is None:
            self.without_cuda(wish, "no nvcc was found")
        else:
            self.with_cuda(wish, nvcc)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        subprocess.check_call([tool("cmake"), "--build", str(self.tmp), "-j", jobs], env=self.env)

    def with_cuda(self, wish, nvcc):
        args = ["-DFASTARD_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
        if os.environ.get("FASTARD_CUDA_ARCH"):
            args.append(f"-DCMAKE_CUDA_ARCHITECTURES={os.environ['FASTARD_CUDA_ARCH']}")
        # An unchanged rebuild asks nvcc nothing.
        if self.stands(args) or works(nvcc):
            self.cmake(args, nvcc_environment(nvcc))
        else:
            self.without_cuda(wish, f"{nvcc} does not work")

    def without_cuda(self, wish, reason):
        if wish == "on":
            raise SystemExit(f"fastard: FASTARD_CUDA=on, but {reason}.")
        print(f"\n*** fastard: {reason}: BUILDING WITHOUT CUDA, CPU KERNELS ONLY ***\n",
              file=sys.stderr, flush=True)  # fmt: skip
        self.cmake(["-DFASTARD_CUDA=OFF", f"-DFASTARD_CUDA_REASON={reason}"])

    def command(self, args):
        return [tool("cmake"), str(ROOT), *self.common, *args]

    def stands(self, args):
        return self.stamp.exists() and self.stamp.read_text() == repr(self.command(args))

    def cmake(self, args, env=None):
        """Configures, unless this very configuration stands: pip's build environment moves."""
        self.env = env or dict(os.environ)
        if self.stands(args):
            return
        shutil.rmtree(self.tmp, ignore_errors=True)
        self.tmp.mkdir(parents=True)
        self.out.mkdir(parents=True, exist_ok=True)
        subprocess.check_call(self.command(args), cwd=self.tmp, env=self.env)
        self.stamp.write_text(repr(self.command(args)))


class WithBenchmarks(build_py):
    """A wheel carries benchmarks/ as fastard._benchmarks; an editable installation has the folder
    itself beside the package."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "fastard" / "_benchmarks"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(ROOT / "benchmarks", target, ignore=shutil.ignore_patterns(*NOT_SHIPPED))


setup(
    ext_modules=[Extension("fastard._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": WithBenchmarks},
)
