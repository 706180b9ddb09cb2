#include "server/request_fingerprint.h"

#include <openssl/sha.h>

#include <string>

#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"

namespace skein::server {

Fingerprint FingerprintOf(const v1::GenerateRequest& request) {
  v1::GenerateRequest canonical = request;
  canonical.clear_request_id();
  if (request.commit() == v1::COMMIT_MODE_UNSPECIFIED) {
    canonical.set_commit(v1::COMMIT_MODE_ON_SUCCESS);
  }
  if (request.on_disconnect() == v1::ON_DISCONNECT_UNSPECIFIED) {
    canonical.set_on_disconnect(v1::ON_DISCONNECT_CANCEL);
  }
  if (request.on_model_mismatch() == v1::ON_MODEL_MISMATCH_UNSPECIFIED) {
    canonical.set_on_model_mismatch(v1::ON_MODEL_MISMATCH_FAIL);
  }
  if (!request.has_num_sequences()) canonical.set_num_sequences(1);
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    canonical.SerializeToCodedStream(&coded);
  }
  Fingerprint fingerprint;
  static_assert(sizeof(fingerprint) == SHA256_DIGEST_LENGTH);
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), fingerprint.data());
  return fingerprint;
}

}  // namespace skein::server
