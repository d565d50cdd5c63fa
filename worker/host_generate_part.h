// A generator as a part of a placement: it sits where the side network sits in training.
#ifndef QST_WORKER_HOST_GENERATE_PART_H_
#define QST_WORKER_HOST_GENERATE_PART_H_

#include <memory>

#include "proto/qst/v1/control.pb.h"
#include "worker/host_part.h"

namespace qst {

// Tokenises the prompt, connects to the stages, and sends text as it is made in generate reports; the last one has a
// finish reason or an error.
std::unique_ptr<Part> MakeGeneratePart(const v1::HostPart& command, const PartContext& context);

}  // namespace qst

#endif  // QST_WORKER_HOST_GENERATE_PART_H_
