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

/// Sets bits of an aligned word.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub unsafe fn set(word: *mut u64, bits: u64) {
    // SAFETY: one instruction on the caller's word.
    unsafe {
        asm!("lock *(u64 *)({word} + 0) |= {bits}", word = in(reg) word, bits = in(reg) bits)
    };
}

/// Clears bits of an aligned word.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub unsafe fn clear(word: *mut u64, bits: u64) {
    // SAFETY: one instruction on the caller's word.
    unsafe {
        asm!("lock *(u64 *)({word} + 0) &= {mask}", word = in(reg) word, mask = in(reg) !bits)
    };
}

/// Reads an aligned word that others change.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub unsafe fn load(word: *const u64) -> u64 {
    // SAFETY: the caller's word; an aligned load is whole.
    unsafe { core::ptr::read_volatile(word) }
}

/// Writes an aligned word that others read.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub unsafe fn store(word: *mut u64, value: u64) {
    // SAFETY: the caller's word; an aligned store is whole.
    unsafe { core::ptr::write_volatile(word, value) };
}
