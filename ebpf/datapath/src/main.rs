//! The eBPF programs. Entry points only: each parses its context, decides and acts.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod atomic;
#[cfg(target_arch = "bpf")]
mod event;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod maps;
/// Tells the agent's log, in debugging builds; else it is nothing, its arguments are not even computed.
#[cfg(all(target_arch = "bpf", feature = "log"))]
macro_rules! say {
    ($($words:tt)*) => { aya_log_ebpf::debug!($($words)*) };
}
#[cfg(all(target_arch = "bpf", not(feature = "log")))]
macro_rules! say {
    ($($words:tt)*) => {};
}
#[cfg(target_arch = "bpf")]
mod programs;

#[cfg(target_arch = "bpf")]
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that no program gets here.
    loop {}
}

/// On the host this target is empty: the programs are for the BPF target only.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
