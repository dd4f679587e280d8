// A device for tests, called "elsewhere": torch takes it for an accelerator, but its memory and arithmetic are the CPU's.
//
// It refuses what a real one refuses, tensors of two devices in one operation, and what must never be asked of it here:
// a random draw.

#include <ATen/EmptyTensor.h>
#include <ATen/TensorOperators.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

namespace {

using at::Tensor;
constexpr auto HERE = c10::DeviceType::PrivateUse1;

struct Guard final : c10::impl::NoOpDeviceGuardImpl<HERE> {  // one device, one stream: nothing to wait for
  c10::Device getDevice() const override { return {HERE, 0}; }
  c10::Device exchangeDevice(c10::Device) const override { return {HERE, 0}; }
  c10::Stream getStream(c10::Device device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};
const bool registered = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  return true;
}();

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = c10::alloc_cpu(bytes);
    return {data, data, &c10::free_cpu, c10::Device(HERE, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
Memory memory;

Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

Tensor on_cpu(const Tensor& tensor) {  // the same memory
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar item(const Tensor& tensor) { return on_cpu(tensor).item(); }

// torch has no general LSTM cell for a device of this kind: it asks for a fused one.
using Maybe = const std::optional<Tensor>&;

std::tuple<Tensor, Tensor, Tensor> cell(const Tensor& in, const Tensor& hidden, const Tensor& before, Maybe in_bias,
                                        Maybe hidden_bias) {
  Tensor sums = in + hidden + *in_bias + *hidden_bias;
  auto gates = sums.chunk(4, 1);
  Tensor after = gates[1].sigmoid() * before + gates[0].sigmoid() * gates[2].tanh();
  return {gates[3].sigmoid() * after.tanh(), after, sums};
}

std::tuple<Tensor, Tensor, Tensor> cell_backward(Maybe of_state, Maybe of_after, const Tensor& before,
                                                 const Tensor& after, const Tensor& sums, bool) {
  auto gates = sums.chunk(4, 1);
  Tensor in = gates[0].sigmoid(), keep = gates[1].sigmoid(), fresh = gates[2].tanh(), out = gates[3].sigmoid();
  Tensor state = of_state.has_value() && of_state->defined() ? *of_state : at::zeros_like(after);
  Tensor cell = state * out * (1 - after.tanh().square());
  if (of_after.has_value() && of_after->defined()) cell = cell + *of_after;
  Tensor found = at::cat({cell * fresh * in * (1 - in), cell * before * keep * (1 - keep),
                          cell * in * (1 - fresh.square()), state * after.tanh() * out * (1 - out)}, 1);
  return {found, cell * keep, found.sum(0)};
}

void check(const c10::OperatorHandle& op, const Tensor& tensor) {
  TORCH_CHECK(!tensor.defined() || tensor.dim() == 0 || tensor.device().type() == HERE, op.schema().name(),
              ": an operand on ", tensor.device(), " beside one on another device");
}

void anything_else(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  for (const auto& tag : op.getTags())
    TORCH_CHECK(tag != at::Tag::nondeterministic_seeded, op.schema().name(), ": drawn on the device");
  for (const auto& argument : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (argument.isTensor()) check(op, argument.toTensor());
    if (argument.isTensorList())
      for (const Tensor& tensor : argument.toTensorVector()) check(op, tensor);
  }
  at::native::cpu_fallback(op, stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&anything_else>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &item);
  m.impl("resize_", at::native::resize_);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", static_cast<Tensor (*)(const Tensor&, at::IntArrayRef)>(at::native::view));
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("_thnn_fused_lstm_cell", &cell);
  m.impl("_thnn_fused_lstm_cell_backward_impl", &cell_backward);
}
