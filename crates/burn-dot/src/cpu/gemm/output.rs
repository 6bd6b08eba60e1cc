//! The output: where its elements are, and how sums are rounded to it.

use core::ops::Range;

use super::{
    super::{
        element::{Compute, Element},
        layout::Axes,
        loops,
        simd::{self, Isa, Task},
        strided::{CHUNK, StridedMut},
    },
    input::Places,
};

/// A block in the output or in a workspace: columns of contiguous lanes, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Block<R> {
    pub at: *mut R,
    pub stride: isize,
}

impl<R> Block<R> {
    /// The first lane of a column.
    pub fn column(self, column: usize) -> *mut R {
        self.at.wrapping_offset(column as isize * self.stride)
    }
}

/// Where a product goes.
#[derive(Clone, Copy)]
pub(in super::super) struct Output<R> {
    at: *mut u8,
    size: usize,
    pub tensor: usize,
    store: Store<R>,
    pub is_compute: bool,
}

// SAFETY: plain data may be written on any thread. Dereferencing it needs a safety argument of its own.
unsafe impl<R> Send for Output<R> {}
// SAFETY: as above.
unsafe impl<R> Sync for Output<R> {}

/// Rounds a segment of each column to where it belongs; finite where `finite` says that none may become infinite.
///
/// # Safety
///
/// From its first on, the block has a column for each of these, with `segment.len` elements, initialized. They are within the output,
/// initialized, too, and nothing else reads or writes there.
type Store<R> = unsafe fn(block: Block<R>, segment: Segment, columns: (&Places, Range<usize>), to: Output<R>, finite: bool);

/// Elements of each column that have one stride in the output.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    pub len: usize,
    /// Where the first is in the output, from the first of its column.
    pub offset: isize,
    pub stride: isize,
}

impl<R: Compute> Output<R> {
    pub fn new<C: Element<Compute = R>>(at: *mut C, tensor: usize) -> Self {
        Output { at: at.cast(), size: size_of::<C>(), tensor, store: store::<C>, is_compute: C::IS_COMPUTE }
    }

    /// The element so far from the first.
    pub fn at(self, offset: isize) -> *mut u8 {
        self.at.wrapping_offset(offset * self.size as isize)
    }

    /// Rounds a block to where it belongs.
    ///
    /// # Safety
    ///
    /// The block is initialized and within the output, which is initialized, too, and which nothing else reads or writes there.
    pub(super) unsafe fn write(self, block: Block<R>, lanes: (&Axes, Range<usize>), columns: &Places, finite: bool) {
        let stride = lanes.0.inner_stride()[self.tensor];
        for (first, len, from) in lanes.0.segments_in(self.tensor, lanes.1) {
            let block = Block { at: block.at.wrapping_add(first), ..block };
            let segment = Segment { len, offset: from[self.tensor], stride };
            // SAFETY: the segment is a part of each column of the block, which is within the output, the caller says.
            unsafe { self.write_columns(block, segment, (columns, 0..columns.len()), finite) };
        }
    }

    /// Rounds columns of a block to where they belong. See [`Store`].
    ///
    /// # Safety
    ///
    /// As there.
    pub(super) unsafe fn write_columns(
        self,
        block: Block<R>,
        segment: Segment,
        columns: (&Places, Range<usize>),
        finite: bool,
    ) {
        // SAFETY: `new` took `store` for the dtype of the output; the rest the caller says.
        unsafe { (self.store)(block, segment, columns, self, finite) }
    }
}

/// # Safety
///
/// As for [`Store`]; the output has this dtype.
unsafe fn store<C: Element>(
    block: Block<C::Compute>,
    segment: Segment,
    columns: (&Places, Range<usize>),
    to: Output<C::Compute>,
    finite: bool,
) {
    // SAFETY: the elements are of dtype `C`: `Output::new::<C>` alone takes this function. The rest is as `Store` asks.
    unsafe { simd::dispatch(StoreColumns::<C> { block, segment, columns, to, finite }) };
}

/// See [`Store`].
///
/// # Safety
///
/// As there, of an output of this dtype.
struct StoreColumns<'a, C: Element> {
    block: Block<C::Compute>,
    segment: Segment,
    columns: (&'a Places, Range<usize>),
    to: Output<C::Compute>,
    finite: bool,
}

impl<C: Element> Task for StoreColumns<'_, C> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self, isa: S) {
        let StoreColumns { block, segment: Segment { len, offset, stride }, columns: (places, columns), to, finite } = self;
        for (column, place) in columns.enumerate() {
            let mut to = to.at(places.offset(place, to.tensor) + offset).cast::<C>();
            // SAFETY: the task says that the block has so many elements in this column.
            let from = unsafe { core::slice::from_raw_parts(block.column(column), len) };
            if stride == 1 {
                // SAFETY: the task says that the output has so many, too.
                loops::from_compute(isa, from, unsafe { core::slice::from_raw_parts_mut(to, len) }, finite);
                continue;
            }
            let mut buffer = [C::default(); CHUNK];
            for from in from.chunks(CHUNK) {
                let rounded = &mut buffer[..from.len()];
                loops::from_compute(isa, from, rounded, finite);
                // SAFETY: as above.
                unsafe { StridedMut { at: to, stride }.scatter(rounded) };
                to = to.wrapping_offset(from.len() as isize * stride);
            }
        }
    }
}
