//! Strided views of memory, gathered into slices and scattered from them.

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
    /// All of them are within one allocation, and can be read.
    #[inline(always)]
    pub unsafe fn gather(self, buffer: &mut [T]) -> &[T] {
        let to = &mut buffer[..self.len];
        if self.stride == 1 {
            // SAFETY: at a stride of 1 the view is `len` contiguous elements, which can be read; `to` has as many, and is ours alone.
            unsafe { core::ptr::copy_nonoverlapping(self.at, to.as_mut_ptr(), self.len) };
            return to;
        }
        for (i, to) in to.iter_mut().enumerate() {
            // SAFETY: `i` is less than `len`, so this is an element of the view, which is within one allocation and can be read.
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
            // SAFETY: this is one of the `from.len()` places, all within one allocation, which nothing else reads or writes.
            unsafe { *self.at.offset(i as isize * self.stride) = x };
        }
    }
}
