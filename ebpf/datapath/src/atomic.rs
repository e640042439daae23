//! Atomic instructions of BPF v3. The target's core library offers loads and stores only.

use core::arch::asm;

/// Adds to an aligned word.
///
/// # Safety
/// `word` points into a map's row and is aligned to 8 bytes.
#[inline(always)]
pub unsafe fn add(word: *mut u64, value: u64) {
    // SAFETY: one instruction on the caller's word.
    unsafe {
        asm!("lock *(u64 *)({word} + 0) += {value}", word = in(reg) word, value = in(reg) value)
    };
}

/// Writes `new` if the word holds `expected`; says whether it did.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub unsafe fn exchange_if(word: *mut u64, expected: u64, new: u64) -> bool {
    let found: u64;
    // SAFETY: one instruction on the caller's word; r0 is the instruction's own operand.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word,
            new = in(reg) new,
            inout("r0") expected => found,
        );
    }
    found == expected
}
