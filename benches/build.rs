//! Compiles the shim to ISA-L where its headers are installed (Debian: libisal-dev), so that it can be measured beside
//! ec-core. Without them everything builds the same, less that one peer.

fn main() {
    println!("cargo::rerun-if-changed=isal/shim.c");
    println!("cargo::rustc-check-cfg=cfg(isal)");
    let found = cc::Build::new()
        .file("isal/shim.c")
        .cargo_warnings(false)
        .try_compile("cairn_isal_shim");
    if found.is_ok() {
        println!("cargo::rustc-cfg=isal");
        println!("cargo::rustc-link-lib=isal");
    }
}
