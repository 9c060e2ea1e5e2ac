//! Tells `bpf-linker` that packets may be read at any alignment.
//!
//! Headers lie 14 bytes into a frame, so nearly every field is misaligned. Without the feature LLVM
//! reads a 32-bit address as four bytes and puts it together again. The kernel's verifier allows
//! misaligned packet access wherever the machine does (x86-64 and arm64 among them).

fn main() {
    println!("cargo:rustc-link-arg-bins=--cpu-features=+allows-misaligned-mem-access");
    println!("cargo:rerun-if-changed=build.rs");
}
