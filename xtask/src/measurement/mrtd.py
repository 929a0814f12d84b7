"""MRTD of a TDVF image, from the image alone: `mrtd.py IMAGE page-by-page|two-pass`.

A second calculation, to hold the first one against: it shares no code, no constant and no language with the rest of
this project. Where the metadata are and what a section says: "TDVF Design Guide" (Intel 344991), "TDVF Metadata". What
is hashed: "TDX Module Base Architecture Specification" (Intel 348549), TDH.MEM.PAGE.ADD and TDH.MR.EXTEND.
"""

import hashlib
import struct
import sys
import uuid

GUID_TABLE = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
TDVF_OFFSET = uuid.UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
PAGE, CHUNK = 4096, 256
EXTEND, AUG = 1, 2


def guid_table(image):
    """The entries of the table that ends 32 bytes before the image, as a dictionary."""
    end = len(image) - 32
    entries = {}
    begin = None
    while begin is None or end > begin:
        length, guid = struct.unpack("<H16s", image[end - 18 : end])
        guid = uuid.UUID(bytes_le=guid)
        if begin is None:
            assert guid == GUID_TABLE, "no table of GUIDs"
            begin, length = end - length, 18
        assert 18 <= length <= end - begin, "an entry leaves the table"
        entries[guid] = image[end - length : end - 18]
        end -= length
    return entries


def sections(image):
    """(file offset, file bytes, GPA, memory bytes, type, attributes) of each section."""
    (back,) = struct.unpack("<I", guid_table(image)[TDVF_OFFSET])
    at = len(image) - back
    signature, _length, version, count = struct.unpack_from("<4sIII", image, at)
    assert (signature, version) == (b"TDVF", 1), "no TDVF descriptor"
    return [struct.unpack_from("<IIQQII", image, at + 16 + 32 * i) for i in range(count)]


def mrtd(image, order):
    digest = hashlib.sha384()

    def command(name, gpa):
        digest.update(struct.pack("<16sQ104x", name, gpa))

    def extend(page, data):
        for offset in range(0, PAGE, CHUNK):
            command(b"MR.EXTEND", page + offset)
            digest.update(data[offset : offset + CHUNK])

    for offset, size, gpa, length, _type, attributes in sections(image):
        if attributes & AUG:
            continue
        memory = image[offset : offset + size].ljust(length, b"\0")
        pages = [(gpa + at, memory[at : at + PAGE]) for at in range(0, length, PAGE)]
        for page, data in pages:
            command(b"MEM.PAGE.ADD", page)
            if attributes & EXTEND and order == "page-by-page":
                extend(page, data)
        if attributes & EXTEND and order == "two-pass":
            for page, data in pages:
                extend(page, data)
    return digest.hexdigest()


if __name__ == "__main__":
    path, order = sys.argv[1:]
    assert order in ("page-by-page", "two-pass"), order
    with open(path, "rb") as file:
        print(mrtd(file.read(), order))
