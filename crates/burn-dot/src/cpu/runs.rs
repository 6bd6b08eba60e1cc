//! Equal steps through memory, read and written as slices.

/// How many numbers that do not lie side by side are brought together at a time: 4 KiB of f64, in the first cache.
pub(super) const CHUNK: usize = 512;

/// Numbers at equal steps in memory.
#[derive(Clone, Copy)]
pub(super) struct Run<T> {
    pub at: *const T,
    pub step: isize,
    pub len: usize,
}

impl<T: Copy> Run<T> {
    /// The numbers as they are, where they lie side by side.
    ///
    /// # Safety
    ///
    /// All of them lie within one allocation that is not written to while the slice lives.
    #[inline(always)]
    pub unsafe fn as_slice<'a>(self) -> Option<&'a [T]> {
        // SAFETY: the caller's promise, at step 1.
        (self.step == 1).then(|| unsafe { core::slice::from_raw_parts(self.at, self.len) })
    }

    /// Copies the numbers side by side.
    ///
    /// # Safety
    ///
    /// All of them lie within one allocation; there are no more than the buffer holds.
    #[inline(always)]
    pub unsafe fn gather(self, buffer: &mut [T]) -> &[T] {
        let to = &mut buffer[..self.len];
        if self.step == 1 {
            // SAFETY: the caller's promise; the buffer is ours alone.
            unsafe { core::ptr::copy_nonoverlapping(self.at, to.as_mut_ptr(), self.len) };
            return to;
        }
        for (i, to) in to.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *to = unsafe { *self.at.offset(i as isize * self.step) };
        }
        to
    }
}

/// Places at equal steps in memory.
#[derive(Clone, Copy)]
pub(super) struct RunMut<T> {
    pub at: *mut T,
    pub step: isize,
    pub len: usize,
}

impl<T: Copy> RunMut<T> {
    /// The target itself where it is contiguous, else the buffer.
    ///
    /// # Safety
    ///
    /// All the places lie within one allocation that nothing else reads or writes while the slice lives. At most as many as the buffer
    /// holds, unless they lie side by side.
    #[inline(always)]
    pub unsafe fn target(self, buffer: &mut [T]) -> &mut [T] {
        match self.step {
            // SAFETY: the caller's promise, at step 1.
            1 => unsafe { core::slice::from_raw_parts_mut(self.at, self.len) },
            _ => &mut buffer[..self.len],
        }
    }

    /// Copies what was written to [`RunMut::target`] where it belongs, unless it is there.
    ///
    /// # Safety
    ///
    /// As [`RunMut::target`].
    #[inline(always)]
    pub unsafe fn deliver(self, from: &[T]) {
        if self.step != 1 {
            for (i, &x) in from.iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { *self.at.offset(i as isize * self.step) = x };
            }
        }
    }
}
