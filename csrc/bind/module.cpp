// The pybind11 module: what this build holds. Importing it registers torch.ops.fastard.*.
#include <pybind11/pybind11.h>

#include "../kernels.h"
#include "ops.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  // In the module's init, so that a refusal is an ImportError.
  fastard::register_ops();
  m.def("cpu_isa", &fastard::cpu_isa, "The instruction set the CPU kernels run with.");
#ifdef FASTARD_WITH_CUDA
  m.attr("has_cuda") = true;
  m.attr("cuda_archs") = FASTARD_CUDA_ARCHS;
  m.def("cuda_versions", [] {
    return py::make_tuple(fastard::cuda_runtime_version(), fastard::cuda_driver_version());
  });
#else
  m.attr("has_cuda") = false;
  m.attr("cuda_archs") = "";
  m.attr("cuda_reason") = FASTARD_CUDA_REASON;
#endif
  m.attr("compiler") = FASTARD_COMPILER;
}
