# The default release policy: nothing is released unless every statement of `allow` holds.
#
# input.resource   {"repository", "type", "tag"}
# input.tee        "snp"
# input.verdict    "accepted" or "rejected": authenticity, freshness and the evidence policy
# input.claims     what the evidence says (see the book, "Claims")
# input.reference  the measurements that are known to be good, as `cloister-attest measure --json` printed them
package policy

import rego.v1

default allow := false

allow if {
	input.verdict == "accepted"
	known_measurement
}

known_measurement if {
	some reference in input.reference
	reference.tee == input.tee
	reference.measurement == input.measurement
}
