//! Hands the linker the ROM's addresses, which the layout table owns.

#[path = "src/layout.rs"]
#[allow(dead_code, missing_docs, reason = "the build script needs only the ROM's place")]
mod layout;

fn main() {
    let script =
        std::path::Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("rom.ld");
    println!("cargo:rerun-if-changed={}", script.display());
    println!("cargo:rerun-if-changed=src/layout.rs");
    let arguments = [
        // No relocation happens at run time, so the image is linked for the place where it runs. Code is still
        // position independent, because 0xFFFF_0000 fits no sign-extended 32-bit address.
        "-nostartfiles".to_owned(),
        "-nostdlib".to_owned(),
        "-static".to_owned(),
        "-no-pie".to_owned(),
        "-Wl,--build-id=none".to_owned(),
        "-Wl,--gc-sections".to_owned(),
        "-Wl,-z,norelro".to_owned(),
        format!("-Wl,--defsym=ROM_BASE={:#x}", layout::ROM.start),
        format!("-Wl,--defsym=RESET_PAGE={:#x}", layout::RESET_PAGE.start),
        format!("-Wl,--defsym=GUID_TABLE={:#x}", layout::GUID_TABLE.start),
        format!("-Wl,--defsym=RESET_VECTOR={:#x}", layout::RESET_VECTOR),
        format!("-Wl,-T,{}", script.display()),
    ];
    for argument in arguments {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
