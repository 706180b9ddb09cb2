#pragma once
// What a request asks for, as 32 bytes: a retry has the same ones, other input has not.

#include "server/request_record.h"
#include "skein/v1/generation.pb.h"

namespace skein::server {

// Everything but the request id counts. The same in every process: maps are in order of their keys,
// and what is left unset is as if its default had been sent where the API says which that is.
Fingerprint FingerprintOf(const v1::GenerateRequest& request);

}  // namespace skein::server
