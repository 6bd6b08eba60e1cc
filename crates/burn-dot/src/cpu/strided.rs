//! Strided views of memory, gathered into slices and scattered from them; and workspaces for elements in another order.

use alloc::vec::Vec;

/// Elements that are gathered or scattered at a time: 4 KiB of f64, in the first-level cache.
pub(super) const CHUNK: usize = 512;

/// Elements at equal strides.
#[derive(Clone, Copy)]
pub(super) struct Strided<T> {
    pub at: *const T,
    pub stride: isize,
    pub len: usize,
}

impl<T: Copy> Strided<T> {
    /// Copies the elements into a buffer.
    ///
    /// # Safety
    ///
    /// All of them are within one allocation; there are no more than the buffer holds.
    #[inline(always)]
    pub unsafe fn gather(self, buffer: &mut [T]) -> &[T] {
        let to = &mut buffer[..self.len];
        if self.stride == 1 {
            // SAFETY: the caller's promise; the buffer is ours alone.
            unsafe { core::ptr::copy_nonoverlapping(self.at, to.as_mut_ptr(), self.len) };
            return to;
        }
        for (i, to) in to.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *to = unsafe { *self.at.offset(i as isize * self.stride) };
        }
        to
    }
}

/// Places at equal strides, to be written.
#[derive(Clone, Copy)]
pub(super) struct StridedMut<T> {
    pub at: *mut T,
    pub stride: isize,
}

impl<T: Copy> StridedMut<T> {
    /// Copies elements to where they belong.
    ///
    /// # Safety
    ///
    /// All places are within one allocation, and nothing else reads or writes them.
    #[inline(always)]
    pub unsafe fn scatter(self, from: &[T]) {
        for (i, &x) in from.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { *self.at.offset(i as isize * self.stride) = x };
        }
    }
}

/// A workspace whose first element begins a cache line, for registers as long as one: loads from elsewhere read two lines each.
#[derive(Default)]
pub(super) struct Workspace<T> {
    elements: Vec<T>,
    len: usize,
}

/// Bytes of a cache line, and of the longest register.
const LINE: usize = 64;

impl<T: Copy + Default> Workspace<T> {
    /// For so many elements, whatever they hold.
    pub fn resize(&mut self, len: usize) -> &mut [T] {
        self.len = len;
        self.elements.resize(len + LINE / size_of::<T>(), T::default());
        let first = self.first();
        &mut self.elements[first..][..len]
    }

    pub fn as_slice(&self) -> &[T] {
        &self.elements[self.first()..][..self.len]
    }

    fn first(&self) -> usize {
        self.elements.as_ptr().align_offset(LINE).min(self.elements.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workspace_begins_a_cache_line_at_every_size() {
        // Held, so that each is elsewhere.
        let held: Vec<_> = (0..200)
            .map(|len| {
                let mut workspace = Workspace::<f32>::default();
                workspace.resize(len).fill(1.0);
                assert!(workspace.as_slice().as_ptr().addr().is_multiple_of(LINE));
                assert_eq!(workspace.as_slice(), alloc::vec![1.0; len]);
                assert_eq!(workspace.resize(2 * len).len(), 2 * len);
                assert!(workspace.as_slice().as_ptr().addr().is_multiple_of(LINE));
                workspace
            })
            .collect();
        assert_eq!(held.len(), 200);
    }
}
