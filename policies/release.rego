# The default release policy: nothing is released unless every statement of `allow` holds.
#
# input.resource   {"repository", "type", "tag"}
# input.tee        "snp" or "tdx"
# input.verdict    "accepted" or "rejected": authenticity, freshness and the evidence policy
# input.claims     what the evidence says (see the book, "Claims")
# input.reference  the guests that are known to be good, as `cloister-attest measure --json` printed them
package policy

import rego.v1

default allow := false

allow if {
	input.verdict == "accepted"
	known_guest
}

# SEV-SNP: the launch digest covers firmware, kernel, initrd and command line.
known_guest if {
	input.tee == "snp"
	some reference in input.reference
	reference.tee == "snp"
	reference.measurement == input.measurement
}

# TDX: MRTD covers the firmware, which measures the rest into RTMR0 to RTMR2. RTMR3 is left to what runs in the guest.
known_guest if {
	input.tee == "tdx"
	some reference in input.reference
	reference.tee == "tdx"
	reference.mrtd == input.measurement
	reference.rtmrs[0] == input.claims.rtmr0
	reference.rtmrs[1] == input.claims.rtmr1
	reference.rtmrs[2] == input.claims.rtmr2
}
