//! Buffers for packed elements, aligned to cache lines: a register as long as a line is loaded from one line, from elsewhere from two.

use alloc::vec::Vec;

/// A buffer whose first element begins a cache line.
#[derive(Default)]
pub(super) struct AlignedBuffer<T> {
    elements: Vec<T>,
    len: usize,
}

/// Bytes of a cache line, and of the longest register.
pub(super) const LINE: usize = 64;

/// Lanes of the longest register, of f32.
pub(super) const MAX_LANES: usize = LINE / size_of::<f32>();

impl<T: Copy + Default> AlignedBuffer<T> {
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
    fn a_buffer_begins_a_cache_line_at_every_size() {
        // Held, so that each is elsewhere.
        let held: Vec<_> = (0..200)
            .map(|len| {
                let mut buffer = AlignedBuffer::<f32>::default();
                buffer.resize(len).fill(1.0);
                assert!(buffer.as_slice().as_ptr().addr().is_multiple_of(LINE));
                assert_eq!(buffer.as_slice(), alloc::vec![1.0; len]);
                assert_eq!(buffer.resize(2 * len).len(), 2 * len);
                assert!(buffer.as_slice().as_ptr().addr().is_multiple_of(LINE));
                buffer
            })
            .collect();
        assert_eq!(held.len(), 200);
    }
}
