#include "node.h"

#include <algorithm>
#include <thread>

namespace ditpress::ort {

std::string text(const Shape& shape) {
  std::string result = "[";
  for (size_t i = 0; i < shape.size(); ++i) result += (i ? ", " : "") + std::to_string(shape[i]);
  return result + "]";
}

Shape shape_of(const Api& api, const Value* value) {
  TensorInfo* info = nullptr;
  check(api.tensor_info(value, &info));
  size_t rank = 0;
  Shape shape;
  Status* status = api.dimension_count(info, &rank);
  if (!status) {
    shape.resize(rank);
    status = api.dimensions(info, shape.data(), rank);
  }
  api.release_tensor_info(info);
  check(status);
  return shape;
}

int64_t count_of(const Shape& shape) {
  int64_t count = 1;
  for (const int64_t length : shape) count *= length;
  return count;
}

Node::Node(const char* op, const Api& api_, const KernelInfo* info) : api(api_), op_(op) {
  size_t length = 0;
  check(api.node_name(info, nullptr, &length));
  std::vector<char> name(length + 1);
  check(api.node_name(info, name.data(), &length));
  name_ = name.data();
}

bool Node::present(Status* status) const {
  if (status) api.release_status(status);
  return !status;
}

int64_t Node::int_attribute(const KernelInfo* info, const char* name, int64_t absent) const {
  int64_t value = 0;
  return present(api.int_attribute(info, name, &value)) ? value : absent;
}

float Node::float_attribute(const KernelInfo* info, const char* name, float absent) const {
  float value = 0;
  return present(api.float_attribute(info, name, &value)) ? value : absent;
}

std::string Node::text_attribute(const KernelInfo* info, const char* name) const {
  size_t length = 0;
  if (!present(api.text_attribute(info, name, nullptr, &length))) return "";
  std::vector<char> value(length + 1);
  check(api.text_attribute(info, name, value.data(), &length));
  return value.data();
}

Shape Node::ints_attribute(const KernelInfo* info, const char* name) const {
  size_t count = 0;
  if (!present(api.ints_attribute(info, name, nullptr, &count))) return {};
  Shape values(count);
  if (count) check(api.ints_attribute(info, name, values.data(), &count));
  return values;
}

void Node::expect(const Value* value, const char* what, const Shape& shape) const {
  const Shape got = shape_of(api, value);
  if (got != shape) fail(std::string(what) + " is " + text(got) + ", expected " + text(shape));
}

int64_t Node::expect_rows(const Value* value, const char* what, int64_t width) const {
  const Shape got = shape_of(api, value);
  if (got.empty() || got.back() != width)
    fail(std::string(what) + " is " + text(got) + ", expected a last dimension of " + std::to_string(width));
  return count_of(got) / width;
}

Pool Host::pool() {
  // The size of the runtime's pool is not told; it is the number of cores unless someone changed it. Asked once: the C
  // library reads a file of the kernel's for every answer, which takes longer than many a node.
  static const int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  return {run, this, threads};
}

void Host::run(void* p, int64_t count, Task task, void* data) {
  Host& host = *static_cast<Host*>(p);
  struct Call {
    Task task;
    void* data;
  } call{task, data};
  const auto body = [](void* c, size_t i) {
    static_cast<Call*>(c)->task(static_cast<Call*>(c)->data, static_cast<int64_t>(i));
  };
  if (count == 1) return body(&call, 0);
  if (!host.status_)
    host.status_ = host.api_.parallel_for(host.context_, body, static_cast<size_t>(count), 0, &call);
}

}  // namespace ditpress::ort
