//! The work of a thread: packs the lanes of a block, multiplies them by the vectors of the other side, and ends what is complete.

use alloc::vec::Vec;
use core::ops::Range;

use super::super::{
    aligned::{AlignedBuffer, MAX_LANES},
    compensated,
    element::Compute,
    layout::{Offsets, X_INDEX, Y_INDEX},
    simd::{self, Isa, Task},
};
use super::{
    Tasks,
    blocking::{self, Blocking, Sums, Whole},
    epilogue::{Epilogue, Project, Scale},
    input::KBlock,
    output::{Block, Output, Segment},
    pack::{BROADCAST, Vectors},
    tile::{self, Panel, Write},
};

/// Sums of a block in a workspace.
pub(super) struct Accumulators<R> {
    /// Of up to 16 blocks of K.
    partial: Vec<R>,
    /// Of all, where they are compensated, and the rounding errors of these.
    total: Vec<R>,
    lost: Vec<R>,
}

impl<R: Compute> Accumulators<R> {
    fn reset(&mut self, len: usize, compensated: bool) {
        self.partial.resize(len, R::default());
        if compensated {
            for sums in [&mut self.total, &mut self.lost] {
                sums.clear();
                sums.resize(len, R::default());
            }
        }
    }

    /// Adds the partial sums to the total.
    fn fold(&mut self) {
        compensated::add(&mut self.total, &mut self.lost, &self.partial);
    }

    /// Adds the totals and their rounding errors.
    fn complete(&mut self) {
        self.partial.resize(self.total.len(), R::default());
        self.partial
            .iter_mut()
            .zip(self.total.iter().zip(&self.lost))
            .for_each(|(to, (&total, &lost))| *to = compensated::total(total, lost));
    }

    /// Adds other totals.
    pub fn add(&mut self, other: &Accumulators<R>) {
        compensated::add(&mut self.total, &mut self.lost, &other.total);
        self.lost.iter_mut().zip(&other.lost).for_each(|(lost, &more)| *lost = *lost + more);
    }
}

/// The buffers of a thread that works on a product.
pub(super) struct Worker<'a, R> {
    tasks: &'a Tasks<'a, R>,
    lanes: Vectors<'a, R>,
    broadcast: Vectors<'a, R>,
    lane_k: KBlock<'a, R>,
    broadcast_k: KBlock<'a, R>,
    panels: Panels<R>,
    pub accumulators: Accumulators<R>,
    /// Of the block's lanes and broadcast vectors, where the epilogue scales by them.
    factors: [Vec<R>; 2],
}

impl<'a, R: Compute> Worker<'a, R> {
    pub fn new(tasks: &'a Tasks<'a, R>) -> Self {
        Worker {
            tasks,
            lanes: Vectors::new(tasks.lanes),
            broadcast: Vectors::new(tasks.broadcast),
            lane_k: KBlock::new(tasks.product.sum),
            broadcast_k: KBlock::new(tasks.product.sum),
            panels: Panels { elements: AlignedBuffer::default(), first: None },
            accumulators: Accumulators { partial: Vec::new(), total: Vec::new(), lost: Vec::new() },
            factors: [Vec::new(), Vec::new()],
        }
    }

    /// Multiplies a part of the product of a batch index, block by block.
    ///
    /// # Safety
    ///
    /// `batch_at` is the offset of a batch index, the ranges are of its lanes and broadcast vectors, and no other task
    /// writes their part of the output. The rest as for [`Product::run`](super::Product::run).
    pub unsafe fn part(&mut self, batch_at: Offsets, lanes: Range<usize>, broadcast: Range<usize>) {
        let Blocking { lane_block, broadcast_block, k_block, sums, .. } = self.tasks.blocking;
        let k = self.tasks.sizes.k;
        // With `Whole::Lanes`, and sums in the output, the epilogue runs once, after all blocks of lanes.
        let together = sums == Sums::Output && self.tasks.whole == Whole::Lanes;
        // Lanes that are one block are packed once.
        let once = lanes.len() <= lane_block && k <= k_block;
        let first = broadcast.start;
        // SAFETY: the blocks are of the part, which is this task's alone, and each is set before it is worked on.
        unsafe {
            for broadcast in blocks(broadcast, broadcast_block) {
                for lanes in blocks(lanes.clone(), lane_block) {
                    self.set(batch_at, lanes.clone(), broadcast.clone());
                    if !once || broadcast.start == first {
                        self.panels.first = None;
                    }
                    self.accumulate(batch_at, 0..k);
                    if !together {
                        self.end(lanes);
                    }
                }
                if together {
                    self.lanes.set(batch_at, lanes.clone());
                    self.end(lanes.clone());
                }
            }
        }
    }

    /// Sets the block that is worked on.
    pub fn set(&mut self, batch_at: Offsets, lanes: Range<usize>, broadcast: Range<usize>) {
        self.lanes.set(batch_at, lanes);
        self.broadcast.set(batch_at, broadcast);
    }

    /// Sums the block over a range of K.
    ///
    /// # Safety
    ///
    /// A block of the batch index at `batch_at` was set, and the range is of its K. Unless it is accumulated in a workspace, nothing else reads
    /// or writes its part of the output. The rest as for [`Product::run`](super::Product::run).
    pub unsafe fn accumulate(&mut self, batch_at: Offsets, k_range: Range<usize>) {
        let Blocking { k_block, sums, compensated, .. } = self.tasks.blocking;
        self.set_factors();
        match sums {
            Sums::Output => {}
            Sums::Registers => self.accumulators.reset(ROUNDED_LANES * ROUNDED_COLUMNS, false),
            Sums::Workspace => {
                self.accumulators.reset(self.lanes.places().len() * self.broadcast.places().len(), compensated);
            }
        }
        let block = self.block();
        let count = k_range.len().div_ceil(k_block);
        for (i, k_range) in blocks(k_range, k_block).enumerate() {
            if count > 1 {
                self.panels.first = None;
            }
            // Sums that are not compensated are of so many blocks at most.
            let add = i % blocking::PLAIN_BLOCKS > 0;
            let last = i + 1 == count;
            self.lane_k.set(&self.tasks.lanes, batch_at, k_range.clone());
            self.broadcast_k.set(&self.tasks.broadcast, batch_at, k_range);
            // SAFETY: both K blocks were set to these indices of K. `block` is the block's part of the output, which nothing else reads or
            // writes, or `accumulators.partial`, which has its size, or that of the columns that are rounded at once; the first block of K is
            // written there, more are added.
            unsafe { self.multiply(block, add, last) };
            if compensated && (last || i % blocking::PLAIN_BLOCKS == blocking::PLAIN_BLOCKS - 1) {
                self.accumulators.fold();
            }
        }
    }

    /// Where the block is accumulated: in the output, or in a workspace, which from registers holds the columns that are rounded at once.
    fn block(&mut self) -> Block<R> {
        let workspace = self.accumulators.partial.as_mut_ptr();
        match self.tasks.blocking.sums {
            Sums::Output => self.block_in_output(),
            Sums::Registers => Block { at: workspace, stride: ROUNDED_LANES as isize },
            Sums::Workspace => Block { at: workspace, stride: self.lanes.places().len() as isize },
        }
    }

    /// Where the block belongs, in elements of the output, which has one stride for its lanes and one for its broadcast vectors.
    fn block_in_output(&self) -> Block<R> {
        let product = self.tasks.product;
        // Both places count the batch index; their sum must count it once.
        let at = self.broadcast.places().offset(0, product.c.tensor) + self.lanes.offset_in_batch(product.c.tensor);
        let stride = self.tasks.broadcast.free.stride_of(product.c.tensor).expect("one stride in the output");
        Block { at: product.c.at(at).cast(), stride }
    }

    /// The factors of the block's rows and columns, where the epilogue scales by them.
    fn set_factors(&mut self) {
        let Epilogue::Scale { rows, columns } = self.tasks.product.epilogue else { return };
        let (lanes, broadcast) = match self.tasks.lanes_are_rows {
            true => ((rows, X_INDEX), (columns, Y_INDEX)),
            false => ((columns, Y_INDEX), (rows, X_INDEX)),
        };
        for (to, (factors, index), places) in [(0, lanes, self.lanes.places()), (1, broadcast, self.broadcast.places())] {
            self.factors[to].clear();
            for at in places.indices(index) {
                self.factors[to].extend(at.map(|at| factors[at as usize].abs()));
            }
        }
    }

    /// Multiplies one block of K.
    ///
    /// # Safety
    ///
    /// As for [`Worker::accumulate`]; `block` has elements for the block that was set, initialized if they are added to.
    unsafe fn multiply(&mut self, block: Block<R>, add: bool, last: bool) {
        let scale = last && !self.tasks.blocking.compensated && matches!(self.tasks.product.epilogue, Epilogue::Scale { .. });
        let [lane_factors, broadcast_factors] = &self.factors;
        let lanes = self.lanes.places().len();
        let output = self.tasks.product.c;
        let rounded = (self.tasks.blocking.sums == Sums::Registers).then(|| Rounded {
            output,
            lanes: self.lanes.offset_in_batch(output.tensor),
            finite: self.tasks.product.epilogue.is_finite(),
        });
        let in_pairs = self.tasks.lanes.input.is_in_pairs();
        // AVX2 has no pairs.
        let bytes = if in_pairs { usize::MAX } else { size_of::<R>() * lanes };
        // SAFETY: both blocks were set within the product, `block` is as the caller says, and the factors were set with them.
        unsafe {
            simd::dispatch_narrow(
                bytes,
                MultiplyBlock {
                    lanes: &mut self.lanes,
                    broadcast: &mut self.broadcast,
                    lane_k: &self.lane_k,
                    broadcast_k: &self.broadcast_k,
                    panels: &mut self.panels,
                    packs_lanes: self.tasks.blocking.packs_lanes,
                    streams: self.tasks.blocking.streams,
                    in_pairs,
                    factors: scale.then_some([lane_factors, broadcast_factors]),
                    block,
                    rounded,
                    add,
                },
            )
        };
    }

    /// Applies the epilogue to the block, whose lanes are these, and writes it to the output.
    ///
    /// # Safety
    ///
    /// The block that was set is summed over all of K, `lanes` are its lanes, and nothing else reads or writes its part of the
    /// output. The rest as for [`Product::run`](super::Product::run).
    pub unsafe fn end(&mut self, lanes: Range<usize>) {
        let Blocking { sums, compensated, .. } = self.tasks.blocking;
        let product = self.tasks.product;
        if compensated {
            self.accumulators.complete();
        }
        let block = self.block();
        match &product.epilogue {
            Epilogue::Scale { .. } if compensated => {
                self.set_factors();
                let [lanes, broadcast] = &self.factors;
                // SAFETY: the block is complete, and has an element for each pair of factors.
                unsafe { simd::dispatch(Scale { block, lanes, broadcast }) };
            }
            Epilogue::Project { x, scales, dots } => {
                // SAFETY: the block is complete, and `x` has a vector for each of its rows, where the row belongs.
                unsafe {
                    simd::dispatch(Project {
                        block,
                        rows_are_columns: !self.tasks.lanes_are_rows,
                        lanes: (self.tasks.lanes.free, lanes.clone()),
                        columns: self.broadcast.places(),
                        x: *x,
                        scales,
                        dots: *dots,
                    });
                }
            }
            // Scaled as the last block of K was multiplied.
            Epilogue::Scale { .. } | Epilogue::None => {}
        }
        if sums == Sums::Workspace {
            // SAFETY: the block is complete, and its part of the output is the caller's alone.
            unsafe {
                product.c.write(block, (self.tasks.lanes.free, lanes), self.broadcast.places(), product.epilogue.is_finite())
            };
        }
    }
}

/// These indices in blocks of at most so many.
fn blocks(indices: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    indices.clone().step_by(size).map(move |first| first..indices.end.min(first + size))
}

/// Packed lanes of a block; lanes before `first` are read in place. Reused for later broadcast blocks by the same
/// instruction set and at the same width: both depend on the number of lanes alone.
struct Panels<R> {
    elements: AlignedBuffer<R>,
    /// `None` until the block's lanes are packed.
    first: Option<usize>,
}

/// One block of lanes, of broadcast vectors and of K, compiled for each instruction set.
///
/// # Safety
///
/// The vectors of both blocks are within their inputs along this block of K, and nobody writes to them. `block` has an element
/// for each lane in a column for each broadcast vector, initialized if it is added to, which nothing else reads or writes, before this
/// thread's next `streaming::fence` if it is streamed; or [`ROUNDED_LANES`] in each of [`ROUNDED_COLUMNS`], if sums are rounded from
/// there. That output, where lanes are contiguous, has such elements, too. There is a factor for each vector, if any.
struct MultiplyBlock<'w, 'a, R> {
    lanes: &'w mut Vectors<'a, R>,
    broadcast: &'w mut Vectors<'a, R>,
    lane_k: &'w KBlock<'a, R>,
    broadcast_k: &'w KBlock<'a, R>,
    panels: &'w mut Panels<R>,
    packs_lanes: bool,
    /// Whether the block is written by non-temporal stores.
    streams: bool,
    /// Whether the elements of both inputs are pairs of bf16.
    in_pairs: bool,
    /// Of lanes and of broadcast vectors, where the product is scaled.
    factors: Option<[&'w [R]; 2]>,
    /// Of the sums.
    block: Block<R>,
    /// Where they are rounded to from there, if they are.
    rounded: Option<Rounded<R>>,
    add: bool,
}

/// An output that complete sums are rounded to.
struct Rounded<R> {
    output: Output<R>,
    /// How far the block's first lane is there from the first of its column.
    lanes: isize,
    finite: bool,
}

/// Columns that are rounded at once, so few that they are on their way to memory while the next ones are multiplied.
const ROUNDED_COLUMNS: usize = 24;
/// Lanes of the widest panel: four registers of f32.
const ROUNDED_LANES: usize = 4 * MAX_LANES;

impl<R: Compute> Task for MultiplyBlock<'_, '_, R> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self, isa: S) {
        let MultiplyBlock {
            lanes,
            broadcast,
            lane_k,
            broadcast_k,
            panels,
            packs_lanes,
            streams,
            in_pairs,
            factors,
            block,
            rounded,
            add,
        } = self;
        let pairs = in_pairs.then(|| isa.pairs().expect("the instruction that the product was cut for"));
        const { assert!(S::VECTORS * S::F32_LANES <= ROUNDED_LANES, "a panel of f32 is no wider than what is rounded at once") };
        let (lane_count, broadcast_count, k) = (lanes.places().len(), broadcast.places().len(), lane_k.len);
        let width = blocking::panel_width(lane_count, R::lanes::<S>(), S::VECTORS);
        // Whole vectors only.
        let in_place = |lanes: &Vectors<'_, R>, lane: usize| {
            let rows = width.min(lane_count - lane);
            rows.is_multiple_of(R::lanes::<S>()).then(|| lanes.panel_in_place(lane..lane + rows, lane_k)).flatten()
        };
        let first_packed = panels.first.unwrap_or_else(|| {
            let first = (0..lane_count).step_by(width).find(|&lane| packs_lanes || in_place(lanes, lane).is_none());
            let first = first.unwrap_or(lane_count);
            // SAFETY: the task says that the lanes are within their input.
            unsafe { lanes.pack(first..lane_count, lane_k, R::lanes::<S>(), width, &mut panels.elements) };
            panels.first = Some(first);
            first
        });
        let packed = panels.elements.as_slice();
        for first in (0..broadcast_count).step_by(BROADCAST) {
            let columns = BROADCAST.min(broadcast_count - first);
            // SAFETY: the task says that the broadcast vectors are within their input.
            let b = unsafe { broadcast.broadcast(first..first + columns, broadcast_k) };
            let at_once = if rounded.is_some() { ROUNDED_COLUMNS } else { columns };
            for lane in (0..lane_count).step_by(width) {
                let a = if lane < first_packed {
                    in_place(lanes, lane).expect("lanes in place when the first were packed")
                } else {
                    let panel = width.min(lane_count - lane).next_multiple_of(R::lanes::<S>());
                    Panel { at: packed[(lane - first_packed) * k..][..panel * k].as_ptr(), k_stride: panel as isize }
                };
                for done in (0..columns).step_by(at_once) {
                    let column = first + done;
                    let scale = factors.map(|[lanes, broadcast]| [lanes[lane..].as_ptr(), broadcast[column..].as_ptr()]);
                    let to = if rounded.is_some() { block.at } else { block.column(column).wrapping_add(lane) };
                    let (rows, columns) = (width.min(lane_count - lane), at_once.min(columns - done));
                    let write = Write { add, scale, streams };
                    // SAFETY: the tile is in the block, or as large as what is rounded at once. Panel, columns and factors are those of it.
                    unsafe { tile::multiply((isa, pairs), k, a, b.from(done), (to, block.stride), (rows, columns), write) };
                    if let Some(Rounded { output, lanes, finite }) = rounded {
                        let segment = Segment { len: rows, offset: lanes + lane as isize, stride: 1 };
                        // SAFETY: these are the sums of a tile, just written, of a part of the output that is this task's alone, initialized,
                        // and has contiguous lanes.
                        unsafe {
                            output.write_columns(block, segment, (broadcast.places(), column..column + columns), finite);
                        }
                    }
                }
            }
        }
    }
}
