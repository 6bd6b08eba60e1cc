//! Vectors of an input on their way to the micro-kernel: read in place, or multiplied by factors and packed into panels.

use alloc::vec::Vec;
use core::ops::Range;

use super::super::{
    aligned::AlignedBuffer,
    element::Compute,
    layout::{Offsets, sum},
    simd::{self, Isa, Task, Transposed},
};
use super::{
    input::{KBlock, Places, Side},
    tile::{self, Order},
};

/// Vectors of an input, and where they are. Read in the order that they have in memory.
pub(super) struct Vectors<'a, R> {
    side: Side<'a, R>,
    batch_at: Offsets,
    places: Places,
    order: Order,
    buffer: Vec<R>,
    panel_segments: Vec<PanelSegment>,
}

/// Contiguous vectors on their way to a panel.
struct PanelSegment {
    /// Where the first is, in elements from the first of the input.
    from: isize,
    len: usize,
    /// Where it goes, and the width of the panel.
    to: usize,
    width: usize,
}

/// Vectors of the broadcast side that are packed at once: whole registers, and whole tiles of 6 and of 8.
pub(super) const BROADCAST: usize = 48;

impl<'a, R: Compute> Vectors<'a, R> {
    pub fn new(side: Side<'a, R>) -> Self {
        let (free, k) = (side.free.inner().1, side.k.inner().1);
        let order = if !side.input.is_contiguous(&k) && side.input.stride(&free) == 1 { Order::ByK } else { Order::ByVector };
        let (batch_at, places) = (Offsets::default(), Places::default());
        Vectors { side, batch_at, places, order, buffer: Vec::new(), panel_segments: Vec::new() }
    }

    /// The block of vectors that the next calls are about.
    pub fn set(&mut self, batch_at: Offsets, vectors: Range<usize>) {
        self.batch_at = batch_at;
        self.places.set(self.side.free, batch_at, vectors);
    }

    pub fn places(&self) -> &Places {
        &self.places
    }

    /// How far the first vector of the block is from the first of its batch index.
    pub fn offset_in_batch(&self, tensor: usize) -> isize {
        self.places.offset(0, tensor) - self.batch_at[tensor]
    }

    /// Where these vectors are, the stride from one to the next, and that along K. `None` where there are several.
    fn strides(&self, vectors: Range<usize>, k: &KBlock<'_, R>) -> Option<(*const u8, isize, isize)> {
        let from = k.single()?;
        let stride = self.places.stride(vectors.clone(), self.side.input.tensor)?;
        let at = self.side.input.offset(sum(self.places.at(vectors.start), from));
        Some((at, stride, self.side.input.stride(&k.last)))
    }

    /// [`Vectors::strides`] of vectors that need not be converted.
    fn unconverted(&self, vectors: Range<usize>, k: &KBlock<'_, R>) -> Option<(*const R, isize, isize)> {
        if !self.side.input.is_as_multiplied() {
            return None;
        }
        let (at, stride, k_stride) = self.strides(vectors, k)?;
        let (stride, k_stride) = self.side.input.strides_in_place(stride, k_stride)?;
        Some((at.cast(), stride, k_stride))
    }

    /// [`Vectors::unconverted`], of vectors that need not be scaled either.
    fn in_place(&self, vectors: Range<usize>, k: &KBlock<'_, R>) -> Option<(*const R, isize, isize)> {
        if self.side.factors.is_some() { None } else { self.unconverted(vectors, k) }
    }

    /// These vectors, of which there are at most [`BROADCAST`], for the micro-kernel to broadcast their elements: where they are, or packed.
    ///
    /// # Safety
    ///
    /// The vectors are of the block that was set, and within the input along this block of K.
    pub unsafe fn broadcast(&mut self, vectors: Range<usize>, k: &KBlock<'_, R>) -> tile::BroadcastColumns<R> {
        match self.in_place(vectors.clone(), k) {
            Some((at, stride, 1)) => return tile::BroadcastColumns { at, order: Order::ByVector, stride },
            Some((at, 1, stride)) => return tile::BroadcastColumns { at, order: Order::ByK, stride },
            _ => {}
        }
        self.buffer.resize(self.buffer.len().max(BROADCAST * k.len), R::default());
        let mut buffer = core::mem::take(&mut self.buffer);
        let stride = match self.order {
            Order::ByVector => k.len,
            Order::ByK => BROADCAST,
        };
        // SAFETY: the vectors are within the input, the caller says; the buffer has elements for [`BROADCAST`] of them.
        unsafe {
            match self.order {
                Order::ByVector => self.read_vectors(vectors.clone(), k, &mut buffer),
                Order::ByK => self.read_by_k(vectors.clone(), k, &mut buffer, [BROADCAST; 2]),
            }
        }
        if self.side.factors.is_some() {
            let factors = &k.factors;
            // SAFETY: the tasks have no pointers.
            unsafe {
                match self.order {
                    Order::ByVector => simd::dispatch(ScaleK { vectors: &mut buffer[..vectors.len() * k.len], factors }),
                    Order::ByK => {
                        simd::dispatch(ScaleRows { rows: &mut buffer[..BROADCAST * k.len], width: BROADCAST, factors })
                    }
                }
            }
        }
        self.buffer = buffer;
        tile::BroadcastColumns { at: self.buffer.as_ptr(), order: self.order, stride: stride as isize }
    }

    /// The panel in place, if its vectors are contiguous and nothing is to be converted or scaled.
    pub fn panel_in_place(&self, vectors: Range<usize>, k: &KBlock<'_, R>) -> Option<tile::Panel<R>> {
        let (at, stride, k_stride) = self.in_place(vectors, k)?;
        (stride == 1 && self.order == Order::ByK).then_some(tile::Panel { at, k_stride })
    }

    /// Packs these vectors, `width` of them to a panel, index of K by index of K. The last panel is as wide as the registers that its
    /// vectors fit in; it is filled up with zeros.
    ///
    /// # Safety
    ///
    /// The vectors are of the block that was set, and within the input along this block of K.
    pub unsafe fn pack(
        &mut self,
        vectors: Range<usize>,
        k: &KBlock<'_, R>,
        lanes: usize,
        width: usize,
        to: &mut AlignedBuffer<R>,
    ) {
        let to = to.resize(vectors.len().next_multiple_of(width) * k.len);
        if self.order == Order::ByK && !vectors.is_empty() {
            let last = ((vectors.len() - 1) % width + 1).next_multiple_of(lanes);
            // SAFETY: the vectors are within the input, the caller says; `to` has as many elements as their panels.
            unsafe { self.read_by_k(vectors.clone(), k, to, [width, last]) };
        }
        let first = vectors.start;
        for start in vectors.clone().step_by(width) {
            let panel = start..vectors.end.min(start + width);
            let width = panel.len().next_multiple_of(lanes);
            let to = &mut to[(start - first) * k.len..][..width * k.len];
            if self.order == Order::ByVector {
                // SAFETY: the vectors are within the input, the caller says; `to` has as many elements as a panel.
                unsafe { self.transpose_panel(panel.clone(), k, to, width) };
            }
            if panel.len() < width {
                to.chunks_exact_mut(width).for_each(|row| row[panel.len()..].fill(R::default()));
            }
            if self.side.factors.is_some() {
                // SAFETY: the task has no pointers.
                unsafe { simd::dispatch(ScaleRows { rows: to, width, factors: &k.factors }) };
            }
        }
    }

    /// # Safety
    ///
    /// The vectors are of the block that was set, within the input along this block of K, and no more than `width`. `to` has
    /// `width` elements for each index of it.
    unsafe fn transpose_panel(&mut self, vectors: Range<usize>, k: &KBlock<'_, R>, to: &mut [R], width: usize) {
        let count = vectors.len();
        let contiguous = self.unconverted(vectors.clone(), k).filter(|&(_, _, k_stride)| k_stride == 1);
        let (rows, stride) = match contiguous {
            Some((at, stride, _)) => (at, stride),
            None => {
                let mut buffer = core::mem::take(&mut self.buffer);
                buffer.resize(buffer.len().max(width * k.len), R::default());
                // SAFETY: the vectors are within the input, the caller says.
                unsafe { self.read_vectors(vectors, k, &mut buffer) };
                self.buffer = buffer;
                (self.buffer.as_ptr(), k.len as isize)
            }
        };
        // SAFETY: the rows are in the input, contiguous, or were just read.
        unsafe { simd::dispatch(Transpose { rows, stride, count, len: k.len, to, width }) };
    }

    /// Reads vector by vector, each contiguous in the buffer.
    ///
    /// # Safety
    ///
    /// The vectors are of the block that was set, and within the input along this block of K.
    unsafe fn read_vectors(&self, vectors: Range<usize>, k: &KBlock<'_, R>, to: &mut [R]) {
        let input = self.side.input;
        let to = &mut to[..vectors.len() * k.len];
        // SAFETY: the vectors are within the input, the caller says; `to` has an element for each of theirs.
        unsafe {
            match self.strides(vectors.clone(), k) {
                Some((from, stride, k_stride)) => {
                    input.load(from, (vectors.len(), stride), (k.len, k_stride), to.as_mut_ptr(), k.len);
                }
                None => {
                    let stride = input.stride(&k.last);
                    for (vector, to) in vectors.zip(to.chunks_exact_mut(k.len)) {
                        for &(first, len, from) in &k.segments {
                            let from = input.offset(sum(self.places.at(vector), from));
                            input.load(from, (1, 0), (len, stride), to[first..][..len].as_mut_ptr(), len);
                        }
                    }
                }
            }
        }
    }

    /// Reads index of K by index of K, in which neighbouring vectors are contiguous, to panels of so many vectors, the last of its own
    /// width.
    ///
    /// # Safety
    ///
    /// The vectors are of the block that was set, and within the input along this block of K.
    unsafe fn read_by_k(&mut self, vectors: Range<usize>, k: &KBlock<'_, R>, to: &mut [R], [width, last_width]: [usize; 2]) {
        let input = self.side.input;
        let (stride, count) = (input.stride(&k.last), vectors.len());
        let width_of = |panel: usize| if (panel + 1) * width < count { width } else { last_width };
        let panels = count.div_ceil(width);
        assert!(
            last_width > (count - 1) % width && to.len() >= ((panels - 1) * width + last_width) * k.len,
            "room for all panels"
        );
        self.panel_segments.clear();
        for (first, len, at) in self.places.segments(vectors, input.tensor) {
            let mut done = 0;
            while done < len {
                let (panel, lane) = ((first + done) / width, (first + done) % width);
                let len = (width - lane).min(len - done);
                let (from, to) = (at + done as isize, panel * width * k.len + lane);
                self.panel_segments.push(PanelSegment { from, len, to, width: width_of(panel) });
                done += len;
            }
        }
        // Some rows of memory for all panels, then the next ones: memory is read in its order.
        for &(first_k, len, from) in &k.segments {
            for rows in (0..len).step_by(ROWS) {
                let count = ROWS.min(len - rows);
                let from = from[input.tensor] + rows as isize * stride;
                for segment in &self.panel_segments {
                    let at = segment.to + (first_k + rows) * segment.width;
                    // SAFETY: the vectors are within the input, the caller says; each index of K of a panel has room for those of it, as
                    // was asserted.
                    unsafe {
                        let from = input.element(from + segment.from);
                        input.load(from, (count, stride), (segment.len, 1), to.as_mut_ptr().add(at), segment.width);
                    }
                }
            }
        }
    }
}

/// Rows of memory that are read at once.
const ROWS: usize = 32;

/// Multiplies the elements of each vector by their factors.
struct ScaleK<'a, R> {
    vectors: &'a mut [R],
    factors: &'a [R],
}

impl<R: Compute> Task for ScaleK<'_, R> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self, isa: S) {
        let lanes = R::lanes::<S>();
        for vector in self.vectors.chunks_exact_mut(self.factors.len()) {
            let (mut to, mut factors) = (vector.chunks_exact_mut(lanes), self.factors.chunks_exact(lanes));
            for (to, factors) in (&mut to).zip(&mut factors) {
                // SAFETY: both have the elements of a register.
                unsafe {
                    let scaled = R::mul_vectors(isa, R::load_vector(isa, to.as_ptr()), R::load_vector(isa, factors.as_ptr()));
                    R::store_vector(isa, scaled, to.as_mut_ptr());
                }
            }
            for (to, &factor) in to.into_remainder().iter_mut().zip(factors.remainder()) {
                *to = *to * factor;
            }
        }
    }
}

/// Multiplies each row, the elements of all vectors at an index of K, by its factor.
struct ScaleRows<'a, R> {
    rows: &'a mut [R],
    width: usize,
    factors: &'a [R],
}

impl<R: Compute> Task for ScaleRows<'_, R> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self, isa: S) {
        for (row, &factor) in self.rows.chunks_exact_mut(self.width).zip(self.factors) {
            let factors = R::splat(isa, factor);
            let mut row = row.chunks_exact_mut(R::lanes::<S>());
            for x in &mut row {
                // SAFETY: these are the elements of a register.
                unsafe {
                    let scaled = R::mul_vectors(isa, R::load_vector(isa, x.as_ptr()), factors);
                    R::store_vector(isa, scaled, x.as_mut_ptr());
                }
            }
            row.into_remainder().iter_mut().for_each(|x| *x = *x * factor);
        }
    }
}

/// `to[j * width + i] = rows[i * stride + j]`.
///
/// # Safety
///
/// Each of `count` rows, `stride` elements apart, has `len` elements that can be read, and nobody writes to them.
struct Transpose<'a, R> {
    rows: *const R,
    stride: isize,
    count: usize,
    len: usize,
    to: &'a mut [R],
    width: usize,
}

impl<R: Compute> Task for Transpose<'_, R> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self, isa: S) {
        let Transpose { rows, stride, count, len, to, width } = self;
        assert!(count <= width && to.len() == len * width, "a panel of {width} vectors of {len} elements");
        let block = R::block::<S>();
        for i in (0..count).step_by(block) {
            for j in (0..len).step_by(block) {
                let block = Transposed {
                    from: rows.wrapping_offset(i as isize * stride).wrapping_add(j),
                    from_stride: stride,
                    rows: block.min(count - i),
                    columns: block.min(len - j),
                    to: to[j * width + i..].as_mut_ptr(),
                    to_stride: width,
                };
                // SAFETY: the task says that the rows can be read; the panel's size was checked above. Pairs of bf16 may be aligned to 2
                // bytes only.
                unsafe { R::transpose(isa, block) };
            }
        }
    }
}
