//! Memory for results. An allocation that Burn frees is cached for the next result of its size, which the next step of a training will
//! ask for.
//!
//! The system's allocator hands 128 KiB and more back at every free, and new pages cost more than many products take. Every byte of an
//! allocation is initialized: those of a new one are zeroed, which is free where the system gives zeroed pages, and a cached one holds
//! what it held. So kernels may take `&mut [T]` of a result, and a fault in one of them could show old elements, but nothing undefined.

use alloc::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    boxed::Box,
};
use core::{
    mem::{ManuallyDrop, MaybeUninit},
    ops::Range,
    ptr::NonNull,
};
#[cfg(feature = "std")]
use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    vec::Vec,
};

use burn_core::tensor::{AllocationProperty, Bytes};
use burn_std::{AccessError, AccessPolicy, AllocationController};
use bytemuck::Pod;

use super::aligned::LINE;

/// Bytes that are cached at most: the scores of 256 queries with 100,000 items, 98 MiB of f32, and the gradients of both. None in the
/// kernels' own tests, where a sanitizer is to see each use of what was freed.
#[cfg(feature = "std")]
const CACHED_BYTES: usize = if cfg!(test) { 0 } else { 192 << 20 };

/// Allocations that are cached at most: few enough to look through.
#[cfg(feature = "std")]
const CACHED_ALLOCATIONS: usize = 64;

/// Smaller allocations are zeroed sooner than found.
#[cfg(feature = "std")]
const CACHED_FROM: usize = 4 << 10;

/// Bytes from which huge pages are asked for: those of two.
const HUGE_FROM: usize = 4 << 20;

/// Whether an allocation of so many bytes is in huge pages, if the system takes the advice.
pub(super) fn has_huge_pages(bytes: usize) -> bool {
    cfg!(target_os = "linux") && bytes >= HUGE_FROM
}

/// The pool of the process.
#[cfg(feature = "std")]
static POOL: Pool = Pool::new(CACHED_BYTES);

/// Gives the memory that is cached for results back to the allocator.
pub(crate) fn release() {
    #[cfg(feature = "std")]
    POOL.clear();
}

/// Memory from the global allocator by a layout that is not empty; nobody else has it, and its bytes are initialized.
struct Allocation {
    at: NonNull<u8>,
    layout: Layout,
}

// SAFETY: an allocation owns its memory as a `Box<[u8]>` does, and nothing in it belongs to a thread.
unsafe impl Send for Allocation {}
// SAFETY: a shared allocation can only be read.
unsafe impl Sync for Allocation {}

impl Allocation {
    /// For so many elements.
    fn cached_or_new<T: Pod>(count: usize) -> Self {
        let layout = Layout::array::<T>(count).expect("the plan refuses results larger than an address space");
        #[cfg(feature = "std")]
        if let Some(allocation) = POOL.take(layout) {
            return allocation;
        }
        Allocation::new(layout)
    }

    fn new(layout: Layout) -> Self {
        assert!(layout.size() > 0, "a product without results is not for the kernels");
        // SAFETY: the layout is not empty.
        let at = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        #[cfg(target_os = "linux")]
        if has_huge_pages(layout.size()) {
            advise_huge_pages(at, layout.size());
        }
        Allocation { at, layout }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: the memory came from the global allocator by this layout, and its owner ends here.
        unsafe { dealloc(self.at.as_ptr(), self.layout) }
    }
}

/// Asks the system to back memory with huge pages: 32 MiB took 36 ms to touch for the first time, with huge pages 5 ms.
#[cfg(target_os = "linux")]
fn advise_huge_pages(at: NonNull<u8>, len: usize) {
    // SAFETY: a question about the system, with no effect.
    let Ok(page) = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) else { return };
    // The allocator's own bytes in front of a large allocation are on its first page.
    let before = at.as_ptr().addr() % page;
    // SAFETY: advice changes no byte, and these pages are mapped: each holds a byte of the allocation, or one in front of it on the same
    // page. Whether the advice is taken does not matter.
    unsafe { libc::madvise(at.as_ptr().wrapping_sub(before).cast(), len + before, libc::MADV_HUGEPAGE) };
}

/// An allocation on loan to a result.
pub(super) struct Loan {
    /// `None` once it has been detached.
    allocation: Option<Allocation>,
    /// The bytes of it that are the result's.
    range: Range<usize>,
}

impl Loan {
    /// Memory for so many elements: cached, or new. It is initialized, to values that mean nothing.
    ///
    /// # Panics
    ///
    /// If there are none, or more than an address space holds.
    pub fn new<T: Pod>(count: usize) -> Self {
        let allocation = Allocation::cached_or_new::<T>(count);
        let range = 0..allocation.layout.size();
        Loan { allocation: Some(allocation), range }
    }

    /// [`Loan::new`], where the first element begins a cache line. A `Vec` is made of it by a copy.
    ///
    /// A register that is stored to two lines takes twice as long, and a streamed row would leave lines half written, which are read first.
    ///
    /// # Panics
    ///
    /// As [`Loan::new`].
    pub fn on_line<T: Pod>(count: usize) -> Self {
        let spare = LINE / size_of::<T>();
        let allocation = Allocation::cached_or_new::<T>(count.saturating_add(spare));
        let start = allocation.at.as_ptr().align_offset(LINE).min(spare * size_of::<T>());
        Loan { allocation: Some(allocation), range: start..start + count * size_of::<T>() }
    }

    /// Aligned for the dtype it was asked for.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        let allocation = self.allocation.as_ref().expect("only `Bytes` detaches an allocation");
        // SAFETY: the range is within the allocation: `on_line` asked for a line more.
        unsafe { allocation.at.as_ptr().add(self.range.start) }
    }

    /// As Burn holds memory.
    pub fn into_bytes(self) -> Bytes {
        let len = self.capacity();
        // SAFETY: all bytes of an allocation are initialized.
        unsafe { Bytes::from_controller(Box::new(self), len) }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        #[cfg(feature = "std")]
        if let Some(allocation) = self.allocation.take() {
            POOL.give(allocation);
        }
    }
}

impl AllocationController for Loan {
    fn alloc_align(&self) -> usize {
        self.allocation.as_ref().map_or(1, |allocation| allocation.layout.align())
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Native
    }

    fn capacity(&self) -> usize {
        self.allocation.as_ref().map_or(0, |_| self.range.len())
    }

    fn memory(&self, _policy: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let Some(Allocation { at, .. }) = &self.allocation else { return Ok(&[]) };
        // SAFETY: the allocation owns these bytes, and is borrowed as long as the slice.
        Ok(unsafe { core::slice::from_raw_parts(at.as_ptr().add(self.range.start).cast(), self.range.len()) })
    }

    unsafe fn memory_mut(&mut self, _policy: AccessPolicy) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        let Some(Allocation { at, .. }) = &mut self.allocation else { return Ok(&mut []) };
        // SAFETY: as above, and nobody else has the allocation.
        Ok(unsafe { core::slice::from_raw_parts_mut(at.as_ptr().add(self.range.start).cast(), self.range.len()) })
    }

    /// For a `Vec` of the same alignment: it frees by the layout that the allocation was made with, so a part of an allocation stays here.
    fn try_detach(&mut self) -> Option<NonNull<u8>> {
        let allocation = self.allocation.take_if(|allocation| self.range.len() == allocation.layout.size())?;
        Some(ManuallyDrop::new(allocation).at)
    }
}

/// Freed allocations, the oldest first.
#[cfg(feature = "std")]
struct Pool {
    limit: usize,
    cached: Mutex<VecDeque<Allocation>>,
}

#[cfg(feature = "std")]
impl Pool {
    const fn new(limit: usize) -> Self {
        Pool { limit, cached: Mutex::new(VecDeque::new()) }
    }

    fn cached(&self) -> std::sync::MutexGuard<'_, VecDeque<Allocation>> {
        // A queue of allocations has no state that a panic could leave half-way.
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The allocation of this layout that was freed last: a cache may still hold it.
    fn take(&self, layout: Layout) -> Option<Allocation> {
        let mut cached = self.cached();
        let place = cached.iter().rposition(|allocation| allocation.layout == layout)?;
        cached.remove(place)
    }

    /// Keeps an allocation in place of the oldest ones.
    fn give(&self, allocation: Allocation) {
        let size = allocation.layout.size();
        if size < CACHED_FROM || size > self.limit {
            return;
        }
        // Freed when the lock is: that may take a while.
        let mut oldest = Vec::new();
        let mut cached = self.cached();
        let mut bytes = size + cached.iter().map(|allocation| allocation.layout.size()).sum::<usize>();
        while bytes > self.limit || cached.len() >= CACHED_ALLOCATIONS {
            let Some(allocation) = cached.pop_front() else { break };
            bytes -= allocation.layout.size();
            oldest.push(allocation);
        }
        cached.push_back(allocation);
        drop(cached);
    }

    fn clear(&self) {
        // Freed when the lock is.
        let allocations = core::mem::take(&mut *self.cached());
        drop(allocations);
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;

    fn allocation(size: usize) -> Allocation {
        Allocation::new(Layout::from_size_align(size, 4).unwrap())
    }

    #[test]
    fn a_freed_allocation_is_given_out_again_for_the_same_layout_only() {
        let pool = Pool::new(1 << 20);
        let (first, layout) = (allocation(8 << 10), Layout::from_size_align(8 << 10, 4).unwrap());
        let at = first.at;
        pool.give(first);
        assert!(pool.take(Layout::from_size_align(4 << 10, 4).unwrap()).is_none(), "a smaller one");
        assert!(pool.take(Layout::from_size_align(8 << 10, 8).unwrap()).is_none(), "one of another alignment");
        assert_eq!(pool.take(layout).map(|allocation| allocation.at), Some(at));
        assert!(pool.take(layout).is_none(), "it is given out once");
    }

    #[test]
    fn the_oldest_allocations_go_so_that_the_limits_hold() {
        let pool = Pool::new(64 << 10);
        for size in [16, 32, 16, 8] {
            pool.give(allocation(size << 10));
        }
        let sizes = |pool: &Pool| pool.cached().iter().map(|allocation| allocation.layout.size() >> 10).collect::<Vec<_>>();
        assert_eq!(sizes(&pool), [32, 16, 8], "16 went for 8");
        pool.give(allocation(65 << 10));
        assert_eq!(sizes(&pool), [32, 16, 8], "an allocation beyond the limit is not cached, and displaces none");
        pool.give(allocation(1 << 10));
        assert_eq!(sizes(&pool), [32, 16, 8], "nor is a small one");
        let pool = Pool::new(64 << 20);
        (0..CACHED_ALLOCATIONS + 3).for_each(|_| pool.give(allocation(4 << 10)));
        assert_eq!(pool.cached().len(), CACHED_ALLOCATIONS);
        pool.clear();
        assert_eq!(sizes(&pool), [0usize; 0]);
    }

    #[test]
    fn an_allocation_becomes_a_vec_without_a_copy_and_a_clone_is_a_copy() {
        for count in [3, 5000, (HUGE_FROM / 4) + 1] {
            let mut loan = Loan::new::<f32>(count);
            let at = loan.as_mut_ptr().cast::<f32>();
            // SAFETY: the allocation holds one element at least.
            unsafe { at.write(1.5) };
            let mut bytes = loan.into_bytes();
            let copy = bytes.clone();
            assert_eq!((bytes.len(), bytes.align()), (4 * count, 4));
            bytes[4] = 1;
            let bytes = bytes.try_into_vec::<f64>().expect_err("a Vec of f64 would be freed by another layout");
            let elements = bytes.try_into_vec::<f32>().expect("the layout of a Vec of f32");
            assert_eq!((elements.as_ptr(), elements.len(), elements[0]), (at.cast_const(), count, 1.5));
            assert_eq!((copy[3], copy[4]), (1.5f32.to_le_bytes()[3], 0));
        }
    }

    #[test]
    fn what_begins_a_cache_line_becomes_a_vec_by_a_copy() {
        for count in [1, 1000, 5000, HUGE_FROM / 4] {
            let mut loan = Loan::on_line::<f32>(count);
            let at = loan.as_mut_ptr().cast::<f32>();
            assert!(at.addr().is_multiple_of(LINE));
            // SAFETY: the loan holds so many elements.
            unsafe { core::slice::from_raw_parts_mut(at, count).fill(1.5) };
            let bytes = loan.into_bytes();
            assert_eq!((bytes.len(), bytes.as_ptr().cast()), (4 * count, at.cast_const()));
            let bytes = bytes.try_into_vec::<f32>().expect_err("a Vec would free another address");
            assert_eq!(bytemuck::cast_slice::<u8, f32>(&bytes), std::vec![1.5; count]);
        }
    }
}
