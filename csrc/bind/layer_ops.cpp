// The engine's operators: schemas, checks at the boundary, and the way to layers.h.
#include "device.h"
#include "ops.h"

namespace fastard {
namespace {

void require_same(const Tensor& t, const Tensor& like, const char* name) {
  const std::string who = name;
  require(t.same_shape(like) && t.same_layout(like), who + " must have x's shape and layout.");
  require(t.dtype() == like.dtype(), who + " must have x's dtype.");
  require(t.device_type() == like.device_type() && t.device_index() == like.device_index(),
          who + " must be on x's device.");
}

const float* per_channel(const Tensor& t, const Tensor& x, const char* name) {
  if (!t) return nullptr;
  require(t.type(name) == kF32 && t.contiguous() && t.numel() == (x.dim() > 1 ? x.sizes()[1] : 1) &&
              t.device_type() == x.device_type() && t.device_index() == x.device_index(),
          std::string(name) + " must be one float32 per channel on x's device.");
  return static_cast<const float*>(t.data());
}

// arena, table
template <class Device> void fold_bn(StableIValue* s, uint64_t, uint64_t) {
  Tensor arena = Tensor::required(s[0]), table = Tensor::required(s[1]);
  require(table.dtype() == aoti_torch_dtype_int64() && table.contiguous() && table.dim() == 2 &&
              table.sizes()[1] == kFoldColumns,
          "table must be contiguous int64 [layers, " + std::to_string(kFoldColumns) + "].");
  require(arena.dtype() == aoti_torch_dtype_uint8() && arena.contiguous() && arena.device_type() == table.device_type() &&
              arena.device_index() == table.device_index(),
          "arena must be contiguous uint8 on the table's device.");
  FoldArgs a = {arena.mutable_data(), static_cast<const FoldLayer*>(table.data()),
                table.sizes()[0]};
  Device(arena).fold(a);
}

// `like` is x, or, where x may be wider, out.
EpilogueArgs epilogue_args(const Tensor& x, const Tensor& like, const Tensor& scale,
                           const Tensor& shift, int64_t act, const Tensor& out) {
  require(act >= kNoAct && act <= kHardswish, "act is not a known code.");
  require(x.dim() >= 1 && x.dense_samples(), "x must be contiguous or channels_last.");
  EpilogueArgs a = {};
  a.x_type = x.type("x");
  require(a.x_type != kF64, "x must be float32, float16 or bfloat16.");
  require_same(out, like, "out");
  a.type = out.type("out");
  a.act = int(act);
  a.count = x.numel();
  a.channels = x.dim() > 1 ? x.sizes()[1] : 1;
  a.plane = x.dim() > 2 && a.channels > 1 ? x.strides()[1] : 1;
  if (x.dim() > 2 && a.channels == 1) a.plane = a.count > 0 ? a.count : 1;
  a.scale = per_channel(scale, x, "scale");
  a.shift = per_channel(shift, x, "shift");
  a.x = x.data();
  return a;
}

const void* operand(const Tensor& t, const Tensor& like, const char* name) {
  if (t) require_same(t, like, name);
  return t.data();
}

// x, scale, shift, other, act, out, pre
template <class Device> void epilogue(StableIValue* s, uint64_t, uint64_t) {
  Tensor x = Tensor::required(s[0]), scale = Tensor::optional(s[1]), shift = Tensor::optional(s[2]);
  Tensor other = Tensor::optional(s[3]), out = Tensor::required(s[5]);
  Tensor pre = Tensor::optional(s[6]);
  EpilogueArgs a = epilogue_args(x, x, scale, shift, decode<int64_t>(s[4]), out);
  a.other = operand(other, x, "other");
  if (pre) require_same(pre, x, "pre");
  a.out = out.mutable_data();
  a.pre = pre.mutable_data();
  Device(x).epilogue(a);
}

// grad, saved, scale, residual, act, out, shift, extra
template <class Device> void epilogue_backward(StableIValue* s, uint64_t, uint64_t) {
  Tensor grad = Tensor::required(s[0]), saved = Tensor::optional(s[1]);
  Tensor scale = Tensor::optional(s[2]), residual = Tensor::optional(s[3]);
  Tensor out = Tensor::required(s[5]), shift = Tensor::optional(s[6]);
  Tensor extra = Tensor::optional(s[7]);
  const int64_t act = decode<int64_t>(s[4]);
  require(saved || act == kNoAct, "this activation's backward needs saved.");
  const bool cast = grad.dtype() == aoti_torch_dtype_float32();
  if (cast)
    require(grad.same_shape(out) && grad.same_layout(out) &&
                grad.device_type() == out.device_type() &&
                grad.device_index() == out.device_index(),
            "out must have x's shape and layout, on x's device.");
  EpilogueArgs a = epilogue_args(grad, cast ? out : grad, scale, shift, act, out);
  require(a.type != kF64, "out must be float32, float16 or bfloat16.");
  a.other = operand(residual, out, "residual");
  a.saved = act == kNoAct ? nullptr : operand(saved, out, "saved");
  a.extra = operand(extra, out, "extra");
  a.out = out.mutable_data();
  a.backward = true;
  Device(grad).epilogue(a);
}

uint8_t* flat_bits(const Tensor& bits, const Tensor& x) {
  require(bits.dtype() == aoti_torch_dtype_uint8() && bits.contiguous() && bits.numel() == (x.numel() + 15) / 16 * 2,
          "bits must be uint8, one bit for each of x's elements, padded to 16.");
  return static_cast<uint8_t*>(bits.mutable_data());
}

BitsArgs bits_args(const Tensor& x, const Tensor& bits) {
  require(x.dense_samples(), "x must be contiguous or channels_last.");
  BitsArgs a = {};
  a.type = x.type("x");
  require(a.type == kF32 || a.type == kBF16, "x must be float32 or bfloat16.");
  a.count = x.numel();
  a.x = x.data();
  a.bits = flat_bits(bits, x);
  return a;
}

// x, act, bits
void make_bits(StableIValue* s, uint64_t, uint64_t) {
  Tensor x = Tensor::required(s[0]), bits = Tensor::required(s[2]);
  BitsArgs a = bits_args(x, bits);
  a.act = int(decode<int64_t>(s[1]));
  require(a.act == kRelu || a.act == kRelu6, "act must be relu or relu6.");
  Cpu::check(cpu_mask_bits(a));
}

// grad, extra, bits, out
void apply_bits(StableIValue* s, uint64_t, uint64_t) {
  Tensor grad = Tensor::required(s[0]), extra = Tensor::optional(s[1]);
  Tensor bits = Tensor::required(s[2]), out = Tensor::required(s[3]);
  if (extra) require_same(extra, grad, "extra");
  require_same(out, grad, "out");
  BitsArgs a = bits_args(grad, bits);
  a.extra = extra.data();
  a.out = out.mutable_data();
  a.apply = true;
  Cpu::check(cpu_mask_bits(a));
}

bool channels_last(const Tensor& t) {
  const int64_t *n = t.sizes(), *at = t.strides();
  if (t.dim() != 4) return false;
  const int64_t wanted[4] = {n[1] * n[2] * n[3], 1, n[1] * n[3], n[1]};
  for (int d = 0; d < 4; ++d)
    if (n[d] > 1 && at[d] != wanted[d]) return false;
  return true;
}

uint8_t* mask(const Tensor& t, const Tensor& image, const char* name, bool write) {
  if (!t) return nullptr;
  const int64_t* n = image.sizes();
  require(t.dtype() == aoti_torch_dtype_uint8() && t.contiguous() && t.numel() == n[0] * n[2] * n[3] * ((n[1] + 15) / 16 * 2),
          std::string(name) + " must be uint8, a bit for each of its tensor's values.");
  return static_cast<uint8_t*>(write ? t.mutable_data() : const_cast<void*>(t.data()));
}

DepthwiseArgs depthwise_args(const Tensor& x, const Tensor& weight, const Tensor& y,
                             int64_t stride, int64_t padding) {
  require(channels_last(x) && channels_last(y) && x.dtype() == y.dtype(),
          "images must be channels_last and of one dtype.");
  const int64_t *n = x.sizes(), *m = y.sizes();
  DepthwiseArgs a = {};
  a.type = x.type("x");
  require(a.type == kF32 || a.type == kBF16, "images must be float32 or bfloat16.");
  require(weight.type("weight") == kF32 && weight.contiguous() && weight.dim() == 3 &&
              weight.sizes()[0] == weight.sizes()[1] && weight.sizes()[2] == n[1],
          "weight must be float32 [kernel, kernel, channels].");
  a.weight = static_cast<const float*>(weight.data());
  a.batch = n[0];
  a.channels = n[1];
  a.height = n[2];
  a.width = n[3];
  a.out_height = m[2];
  a.out_width = m[3];
  a.kernel = weight.sizes()[0];
  a.stride = stride;
  a.padding = padding;
  require((a.kernel == 3 || a.kernel == 5 || a.kernel == 7) && padding >= 0 &&
              padding < a.kernel && (stride == 1 || stride == 2),
          "kernel must be 3, 5 or 7, padding below it, stride 1 or 2.");
  require(m[0] == n[0] && m[1] == n[1] &&
              m[2] == (n[2] + 2 * padding - a.kernel) / stride + 1 &&
              m[3] == (n[3] + 2 * padding - a.kernel) / stride + 1,
          "y's shape does not follow from x's.");
  return a;
}

// x, weight, bias, stride, padding, act, in_act, y, in_bits, out_bits
void depthwise(StableIValue* s, uint64_t, uint64_t) {
  Tensor x = Tensor::required(s[0]), weight = Tensor::required(s[1]);
  Tensor bias = Tensor::optional(s[2]), y = Tensor::required(s[7]);
  Tensor in_bits = Tensor::optional(s[8]), out_bits = Tensor::optional(s[9]);
  DepthwiseArgs a = depthwise_args(x, weight, y, decode<int64_t>(s[3]), decode<int64_t>(s[4]));
  a.act = int(decode<int64_t>(s[5]));
  a.in_act = int(decode<int64_t>(s[6]));
  require(a.act >= kNoAct && a.act <= kRelu6 && a.in_act >= kNoAct && a.in_act <= kRelu6,
          "act must be none, relu or relu6.");
  a.bias = per_channel(bias, x, "bias");
  a.in = x.data();
  a.out = y.mutable_data();
  a.in_bits = mask(in_bits, x, "in_bits", true);
  a.out_bits = mask(out_bits, y, "out_bits", true);
  Cpu::check(cpu_depthwise(a));
}

// grad, weight, stride, padding, out_bits, in_bits, dx
void depthwise_backward(StableIValue* s, uint64_t, uint64_t) {
  Tensor grad = Tensor::required(s[0]), weight = Tensor::required(s[1]);
  Tensor out_bits = Tensor::optional(s[4]), in_bits = Tensor::optional(s[5]);
  Tensor dx = Tensor::required(s[6]);
  DepthwiseArgs a = depthwise_args(dx, weight, grad, decode<int64_t>(s[2]), decode<int64_t>(s[3]));
  a.backward = true;
  a.in = grad.data();
  a.out = dx.mutable_data();
  a.in_mask = mask(out_bits, grad, "out_bits", false);
  a.out_mask = mask(in_bits, dx, "in_bits", false);
  Cpu::check(cpu_depthwise(a));
}

}  // namespace

void define_layer_ops(TorchLibraryHandle lib) {
  define(lib, "fold_bn_(Tensor(a!) arena, Tensor table) -> ()");
  define(lib,
         "epilogue(Tensor x, Tensor? scale, Tensor? shift, Tensor? other, int act, "
         "Tensor(a!) out, Tensor(b!)? pre=None) -> ()");
  define(lib,
         "epilogue_backward(Tensor grad, Tensor? saved, Tensor? scale, Tensor? residual, "
         "int act, Tensor(a!) out, Tensor? shift=None, Tensor? extra=None) -> ()");
  define(lib,
         "depthwise(Tensor x, Tensor weight, Tensor? bias, int stride, int padding, int act, "
         "int in_act, Tensor(a!) y, Tensor(b!)? in_bits, Tensor(c!)? out_bits) -> ()");
  define(lib,
         "depthwise_backward(Tensor grad, Tensor weight, int stride, int padding, "
         "Tensor? out_bits, Tensor? in_bits, Tensor(a!) dx) -> ()");
  define(lib, "make_bits(Tensor x, int act, Tensor(a!) bits) -> ()");
  define(lib, "apply_bits(Tensor grad, Tensor? extra, Tensor bits, Tensor(a!) out) -> ()");
}

void implement_layer_ops_cpu(TorchLibraryHandle lib) {
  implement(lib, "fold_bn_", fold_bn<Cpu>);
  implement(lib, "epilogue", epilogue<Cpu>);
  implement(lib, "epilogue_backward", epilogue_backward<Cpu>);
  implement(lib, "depthwise", depthwise);
  implement(lib, "depthwise_backward", depthwise_backward);
  implement(lib, "make_bits", make_bits);
  implement(lib, "apply_bits", apply_bits);
}

#ifdef FASTARD_WITH_CUDA
void implement_layer_ops_cuda(TorchLibraryHandle lib) {
  implement(lib, "fold_bn_", fold_bn<Cuda>);
  implement(lib, "epilogue", epilogue<Cuda>);
  implement(lib, "epilogue_backward", epilogue_backward<Cuda>);
}
#endif

}  // namespace fastard
