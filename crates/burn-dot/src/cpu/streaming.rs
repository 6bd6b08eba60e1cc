//! Non-temporal (streaming) stores, for results that would not stay in a cache. A cache line that is written whole is then not read first.

use super::simd::{self, Isa, Task};

/// Bytes of results that would not stay in a cache of 32 MiB beside the inputs, where it was measured (benches/README.md). Fewer in the
/// kernels' own tests, which valgrind runs too.
pub(super) const STREAM_FROM: usize = if cfg!(test) { 1 << 20 } else { 20 << 20 };

/// Copies elements to where they will not be read soon.
///
/// # Safety
///
/// There is room for them, that nothing else reads or writes before this thread's next [`fence`].
#[inline(always)]
pub(super) unsafe fn stream<S: Isa, T: Copy>(isa: S, from: &[T], to: *mut T) {
    let lanes = size_of::<S::f64s>() / size_of::<T>();
    let mut at = to.align_offset(size_of::<S::f64s>()).min(from.len());
    // SAFETY: the caller has room for `from.len()` elements, and `at` never passes that; from the first multiple of a register's size on,
    // `to` is aligned.
    unsafe {
        core::ptr::copy_nonoverlapping(from.as_ptr(), to, at);
        while at + lanes <= from.len() {
            stream_register(isa, from.as_ptr().add(at).cast(), to.add(at).cast());
            at += lanes;
        }
        core::ptr::copy_nonoverlapping(from.as_ptr().add(at), to.add(at), from.len() - at);
    }
}

/// Copies a register.
///
/// # Safety
///
/// As for [`Isa::stream`].
#[inline(always)]
pub(super) unsafe fn stream_register<S: Isa>(isa: S, from: *const S::f64s, to: *mut S::f64s) {
    #[cfg(test)]
    UNFENCED.set(true);
    // SAFETY: as the caller says.
    unsafe { isa.stream(from, to) };
}

/// Orders what was streamed before what this thread writes next.
#[inline(always)]
pub(super) fn fence<S: Isa>(isa: S) {
    isa.fence();
    #[cfg(test)]
    UNFENCED.set(false);
}

#[cfg(test)]
std::thread_local! {
    /// Whether this thread has streamed since its last fence.
    static UNFENCED: core::cell::Cell<bool> = const { core::cell::Cell::new(false) };
}

/// A task ends here, and its thread will say so to others.
#[cfg(test)]
pub(super) fn assert_fenced() {
    assert!(!UNFENCED.get(), "a task ended without a fence after what it streamed");
}

/// Held by a task. When it ends, also by a panic, what it streamed comes before whatever the thread does next, such as saying that the task
/// is done.
pub(super) struct FenceOnDrop {
    pub streams: bool,
}

impl Drop for FenceOnDrop {
    fn drop(&mut self) {
        if self.streams {
            // SAFETY: the task has no pointers.
            unsafe { simd::dispatch(Fence) };
        }
    }
}

/// Orders non-temporal stores before what this thread writes next.
struct Fence;

impl Task for Fence {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self, isa: S) {
        fence(isa);
    }
}
