//! Finds the eBPF object that the agent carries within itself.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=ISTHMUS_DATAPATH_OBJECT");
    let object = env::var_os("ISTHMUS_DATAPATH_OBJECT").map_or_else(
        || {
            // Asked for now, not when this program was built: a target directory can be moved with its tree.
            PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"))
                .join("../target/ebpf/datapath.o")
        },
        PathBuf::from,
    );
    println!("cargo::rerun-if-changed={}", object.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("datapath.o");
    if let Err(error) = fs::copy(&object, &out) {
        println!(
            "cargo::error=the eBPF object {} cannot be read ({error}): build it with `cargo xtask build`, or name another in ISTHMUS_DATAPATH_OBJECT",
            object.display()
        );
    }
}
