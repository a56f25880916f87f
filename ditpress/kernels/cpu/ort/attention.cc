#include "attention.h"

#include <cmath>

#include "../attend.h"
#include "../isa.h"

namespace ditpress::ort {

AttentionOp::AttentionOp() : CustomOp{} {
  describe<AttentionOp, AttentionKernel>(*this);
  input_count = [](const CustomOp*) -> size_t { return 4; };
  input_type = [](const CustomOp*, size_t) { return Element::kFloat; };
  input_presence = [](const CustomOp*, size_t i) { return i < 3 ? Presence::kRequired : Presence::kVariadic; };
  variadic_input_min = [](const CustomOp*) { return 0; };
  output_count = [](const CustomOp*) -> size_t { return 1; };
  output_presence = [](const CustomOp*, size_t) { return Presence::kRequired; };
  variadic_output_min = [](const CustomOp*) { return 0; };
}

AttentionKernel::AttentionKernel(const AttentionOp& op, const Api& api_, const KernelInfo* info)
    : Node(op.op_name, api_, info),
      heads_(int_attribute(info, "num_heads", 0)),
      scale_(float_attribute(info, "scale", NAN)),
      bf16_(int_attribute(info, "bf16", 0) != 0),
      kernels_(default_kernels()) {
  if (heads_ < 1) fail("num_heads=" + std::to_string(heads_) + ", expected >= 1");
  if (!std::isfinite(scale_)) fail("scale=" + std::to_string(scale_) + ", expected a finite number");
}

void AttentionKernel::compute(KernelContext* context) {
  size_t given = 0;
  check(api.input_count(context, &given));
  if (given != 3 && given != 4) fail(std::to_string(given) + " inputs, expected 3, or 4 with a mask");
  const Value* inputs[4] = {};
  for (size_t i = 0; i < given; ++i) check(api.input(context, i, &inputs[i]));
  const Shape q = shape_of(api, inputs[0]), k = shape_of(api, inputs[1]);
  if (q.size() != 3 || q[2] % heads_ || q[2] == 0)
    fail("q is " + text(q) + ", expected [B, T, heads * width] with " + std::to_string(heads_) + " heads");
  if (k.size() != 3 || k[0] != q[0] || k[2] != q[2])
    fail("k is " + text(k) + ", expected [" + std::to_string(q[0]) + ", S, " + std::to_string(q[2]) + "]");
  expect(inputs[2], "v", k);
  AttentionCall call = {};
  call.batch = q[0];
  call.heads = heads_;
  call.queries = q[1];
  call.keys = k[1];
  call.width = q[2] / heads_;
  call.scale = scale_;
  call.bf16 = bf16_;
  if (given == 4) {
    const Shape mask = shape_of(api, inputs[3]), full = {q[0], heads_, q[1], k[1]};
    if (mask.size() != 4) fail("mask is " + text(mask) + ", expected 4 dimensions");
    int64_t stride = 1;
    for (int i = 3; i >= 0; --i) {
      if (mask[i] != 1 && mask[i] != full[i]) fail("mask is " + text(mask) + ", expected 1 or " + text(full));
      call.mask_stride[i] = mask[i] == 1 ? 0 : stride;
      stride *= mask[i];
    }
    call.mask = data_of<const float>(api, inputs[3]);
  }
  call.q = data_of<const float>(api, inputs[0]);
  call.k = data_of<const float>(api, inputs[1]);
  call.v = data_of<const float>(api, inputs[2]);
  Value* y = nullptr;
  check(api.output(context, 0, q.data(), q.size(), &y));
  call.y = data_of<float>(api, y);
  Host host{api, context};
  attend(call, *kernels_, host.pool());
  host.finish();
}

}  // namespace ditpress::ort
