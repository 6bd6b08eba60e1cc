//! The micro-kernel: a tile of the product that stays in registers while it is summed along K.

use super::super::{
    aligned::{LINE, MAX_LANES},
    element::{Compute, clamp_to_one},
    simd::{Isa, Pairs},
    streaming,
};

/// Terms added to one accumulator before it goes to the tile's total. Each addition loses half a unit in the last place at most; adding the
/// totals costs two operations in a hundred.
const CHAIN: usize = 64;

/// The multiply-add of a tile: of elements, or of pairs of them.
trait MulAdd<S: Isa, R: Compute>: Copy {
    /// Indices of K that have [`CHAIN`] products.
    const INDICES: usize;

    /// Calls a function that is compiled for the instructions of [`MulAdd::add`].
    fn vectorize<F: pulp::NullaryFnOnce>(self, isa: S, f: F) -> F::Output;
    /// `sum + x y`, of a vector each.
    fn add(self, isa: S, x: R::Vector<S>, y: R::Vector<S>, sum: R::Vector<S>) -> R::Vector<S>;
}

/// An element of the compute dtype for each index of K.
#[derive(Clone, Copy)]
struct Elements;

impl<S: Isa, R: Compute> MulAdd<S, R> for Elements {
    const INDICES: usize = CHAIN;

    #[inline(always)]
    fn vectorize<F: pulp::NullaryFnOnce>(self, isa: S, f: F) -> F::Output {
        struct Call<F>(F);
        impl<F: pulp::NullaryFnOnce> pulp::WithSimd for Call<F> {
            type Output = F::Output;

            #[inline(always)]
            fn with_simd<Same: pulp::Simd>(self, _: Same) -> F::Output {
                self.0.call()
            }
        }
        isa.vectorize(Call(f))
    }
    #[inline(always)]
    fn add(self, isa: S, x: R::Vector<S>, y: R::Vector<S>, sum: R::Vector<S>) -> R::Vector<S> {
        R::mul_add(isa, x, y, sum)
    }
}

/// A pair of bf16 for each index of K, in the bits of an f32.
#[derive(Clone, Copy)]
struct InPairs<P>(P);

impl<S: Isa, R: Compute> MulAdd<S, R> for InPairs<S::Pairs> {
    const INDICES: usize = CHAIN / 2;

    #[inline(always)]
    fn vectorize<F: pulp::NullaryFnOnce>(self, _: S, f: F) -> F::Output {
        self.0.vectorize(f)
    }
    #[inline(always)]
    fn add(self, _: S, x: R::Vector<S>, y: R::Vector<S>, sum: R::Vector<S>) -> R::Vector<S> {
        R::add_pairs(self.0, x, y, sum)
    }
}

/// How vectors of an input are read: along what is contiguous there.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Order {
    /// Vector by vector, along K.
    ByVector,
    /// Index of K by index of K, along the vectors.
    ByK,
}

/// Columns that are broadcast.
#[derive(Clone, Copy)]
pub(super) struct BroadcastColumns<T> {
    pub at: *const T,
    /// What is contiguous: the elements of a column, or those of all columns at an index of K.
    pub order: Order,
    /// From one column to the next, or from one index of K to the next.
    pub stride: isize,
}

impl<T> BroadcastColumns<T> {
    /// Those from the column so many after the first.
    pub fn from(self, n: usize) -> Self {
        let stride = if self.order == Order::ByVector { self.stride } else { 1 };
        BroadcastColumns { at: self.at.wrapping_offset(n as isize * stride), ..self }
    }
}

/// A micro-panel, packed or in the input itself: for each index of K as many contiguous elements as the tile has rows.
#[derive(Clone, Copy)]
pub(super) struct Panel<T> {
    pub at: *const T,
    /// From one index of K to the next.
    pub k_stride: isize,
}

/// What becomes of a tile.
#[derive(Clone, Copy)]
pub(super) struct Write<R> {
    /// Whether to add to what is there.
    pub add: bool,
    /// The factors of the tile's first row and first column, where the product is complete and normalized.
    pub scale: Option<[*const R; 2]>,
    /// Whether by non-temporal stores, where each column begins a cache line. What is added to is not.
    pub streams: bool,
}

/// The product of a panel and some columns, written to `to`, column by column, `stride` elements apart. With `pairs`, the elements of both are
/// the bits of pairs of bf16.
///
/// # Panics
///
/// If the rows do not fit in [`Isa::VECTORS`] vectors.
///
/// # Safety
///
/// The panel holds, `k` times, as many vectors as `rows` fit in; `b` so many columns of `k` elements. `to` has room for `rows` elements
/// in each of `columns` columns, which nothing else reads or writes, before this thread's next [`streaming::fence`] if they are streamed,
/// and which are initialized where they are added to. There is a factor for each row and column.
#[inline(always)]
pub(super) unsafe fn multiply<S: Isa, R: Compute>(
    (isa, pairs): (S, Option<S::Pairs>),
    k: usize,
    a: Panel<R>,
    b: BroadcastColumns<R>,
    (to, stride): (*mut R, isize),
    (rows, columns): (usize, usize),
    write: Write<R>,
) {
    assert!(rows <= S::VECTORS * R::lanes::<S>(), "the rows of a tile fit in its vectors");
    let mut done = 0;
    // SAFETY: the rows fit in the vectors of the arm that is taken, and in no fewer, as was asserted. A tile takes `N` columns from `done`
    // on, of the panel's `k`, and only where so many are left: each column is read and written by one of them.
    unsafe {
        macro_rules! columns {
            ($vectors:literal; $($n:literal)*) => {{$(
                // Known when this is compiled: tiles too large for the instruction set are not.
                if const { $vectors <= S::VECTORS && $vectors * $n <= S::ACCUMULATORS } {
                    while columns - done >= $n {
                        let b = b.from(done);
                        let to = (to.offset(done as isize * stride), stride);
                        let scale = match write.scale {
                            Some([row, column]) => Some([row, column.add(done)]),
                            None => None,
                        };
                        let write = Write { scale, ..write };
                        let tile = Tile::<S, R, $vectors, $n> { isa, k, a, b, to, rows, write };
                        match (pairs, b.order) {
                            (Some(pairs), order) if const { !R::IS_F64 } => match order {
                                Order::ByVector => tile.multiply::<false>(InPairs(pairs)),
                                Order::ByK => tile.multiply::<true>(InPairs(pairs)),
                            },
                            (_, Order::ByVector) => tile.multiply::<false>(Elements),
                            (_, Order::ByK) => tile.multiply::<true>(Elements),
                        }
                        done += $n;
                    }
                }
            )*}};
        }
        const { assert!(S::VECTORS <= 4, "as many arms as a panel may have vectors") };
        // The fewer vectors, the more columns: the latency of an addition is hidden by as many sums.
        match rows.div_ceil(R::lanes::<S>()) {
            4 => columns!(4; 6 4 2 1),
            3 => columns!(3; 8 4 2 1),
            2 => columns!(2; 8 6 4 2 1),
            _ => columns!(1; 16 8 4 2 1),
        }
    }
}

/// What [`multiply`] is given, of `N` columns and of rows that fit in `V` vectors, and in no fewer.
struct Tile<S, R, const V: usize, const N: usize> {
    isa: S,
    k: usize,
    a: Panel<R>,
    b: BroadcastColumns<R>,
    to: (*mut R, isize),
    rows: usize,
    write: Write<R>,
}

/// A tile whose columns are in [`Order::ByK`], or in the other, and its multiply-add.
struct InOrder<T, M, const BY_K: bool>(T, M);

impl<S: Isa, R: Compute, M: MulAdd<S, R>, const V: usize, const N: usize, const BY_K: bool> pulp::NullaryFnOnce
    for InOrder<Tile<S, R, V, N>, M, BY_K>
{
    type Output = ();

    #[inline(always)]
    fn call(self) {
        // SAFETY: `Tile::multiply` alone makes one, and calls this at once: what its caller says holds here.
        unsafe { self.0.run::<M, BY_K>(self.1) };
    }
}

impl<S: Isa, R: Compute, const V: usize, const N: usize> Tile<S, R, V, N> {
    /// A function of its own, so that the compiler has all registers for it. Compiled for pulp's instruction set, not by
    /// [`dispatch`](super::super::simd::dispatch): what that adds, conversions of f16, no tile has.
    ///
    /// # Safety
    ///
    /// As for [`multiply`], with columns in this order.
    #[inline(never)]
    unsafe fn multiply<const BY_K: bool>(self, by: impl MulAdd<S, R>) {
        by.vectorize(self.isa, InOrder::<_, _, BY_K>(self, by));
    }

    /// # Safety
    ///
    /// As for [`Tile::multiply`].
    #[inline(always)]
    unsafe fn run<M: MulAdd<S, R>, const BY_K: bool>(self, by: M) {
        let Tile { isa, k, a, b, to: (to, stride), rows, write } = self;
        let before_last = (V - 1) * R::lanes::<S>();
        let whole = rows == V * R::lanes::<S>();
        // A register of `R`, as large as what is streamed at once: the scalar fallback has smaller ones. Whole lines, each written at once.
        let is_register = const { size_of::<R::Vector<S>>() == size_of::<S::f64s>() };
        let on_lines = to.addr().is_multiple_of(LINE) && (stride * size_of::<R>() as isize).unsigned_abs().is_multiple_of(LINE);
        let streams = is_register && write.streams && !write.add && on_lines;
        // SAFETY: `a` has `V` vectors, and `b` an element in each of `N` columns, at each of `k` indices. There are `rows` elements in each
        // column of `to`, and as many factors: all vectors but the last are whole, and that is written row by row where it is not.
        unsafe {
            let sums = accumulate::<S, R, M, V, N, BY_K>((isa, by), k, a, b);
            match (write.add, write.scale) {
                (false, None) => write_vectors(
                    isa,
                    &sums,
                    (to, stride),
                    whole,
                    streams,
                    #[inline(always)]
                    |x, _, _, _| x,
                ),
                (true, None) => write_vectors(
                    isa,
                    &sums,
                    (to, stride),
                    whole,
                    streams,
                    #[inline(always)]
                    |x, to, _, _| R::add_vectors(isa, x, R::load_vector(isa, to)),
                ),
                (add, Some([rows, columns])) => write_vectors(
                    isa,
                    &sums,
                    (to, stride),
                    whole,
                    streams,
                    #[inline(always)]
                    |x, to, row, column| {
                        let x = if add { R::add_vectors(isa, x, R::load_vector(isa, to)) } else { x };
                        let column = R::splat(isa, *columns.add(column));
                        let factors = R::mul_vectors(isa, R::load_vector(isa, rows.add(row)), column);
                        R::clamp(isa, R::mul_vectors(isa, x, factors), R::from_f64(1.0))
                    },
                ),
            }
            if !whole {
                for (column, sums) in sums.iter().enumerate() {
                    let mut last = [R::default(); MAX_LANES];
                    R::store_vector(isa, sums[V - 1], last[..R::lanes::<S>()].as_mut_ptr());
                    let scale = write.scale.map(|[rows, columns]| (rows.add(before_last), *columns.add(column)));
                    let to = to.offset(column as isize * stride).add(before_last);
                    write_rows(&last[..rows - before_last], to, write.add, scale);
                }
            }
        }
    }
}

/// The sums of a tile, by chains of [`CHAIN`] terms.
///
/// # Safety
///
/// `a` has `k` times `V` vectors, `b` so many elements in each of `N` columns, all of which can be read.
#[inline(always)]
unsafe fn accumulate<S: Isa, R: Compute, M: MulAdd<S, R>, const V: usize, const N: usize, const BY_K: bool>(
    (isa, by): (S, M),
    k: usize,
    a: Panel<R>,
    b: BroadcastColumns<R>,
) -> [[R::Vector<S>; V]; N] {
    // The compiler must know one of both strides: with two that it does not know, it takes an instruction more for each column.
    let (column, k_stride) = if BY_K { (1, b.stride) } else { (b.stride, 1) };
    let mut at = Cursor { a: a.at, a_stride: a.k_stride, b: b.at, column, k_stride };
    let mut left = k;
    let mut totals: Option<[[R::Vector<S>; V]; N]> = None;
    loop {
        let chain = left.min(M::INDICES);
        let mut sums = [[R::splat(isa, R::default()); V]; N];
        // SAFETY: all chains together have `k` terms, each at the next index of K, where `V` vectors and `N` elements can be read.
        unsafe {
            // By fours: where another hardware thread shares the core, the instructions of the loop itself would cost a tenth.
            for _ in 0..chain / 4 {
                add_term(isa, by, &mut at, &mut sums);
                add_term(isa, by, &mut at, &mut sums);
                add_term(isa, by, &mut at, &mut sums);
                add_term(isa, by, &mut at, &mut sums);
            }
            for _ in 0..chain % 4 {
                add_term(isa, by, &mut at, &mut sums);
            }
        }
        if let Some(totals) = &totals {
            for (sums, totals) in sums.iter_mut().zip(totals) {
                for (sum, &total) in sums.iter_mut().zip(totals) {
                    *sum = R::add_vectors(isa, *sum, total);
                }
            }
        }
        left -= chain;
        if left == 0 {
            return sums;
        }
        totals = Some(sums);
    }
}

/// Where the next term of each sum is: a vector of `a`, and an element of each column of `b`.
struct Cursor<R> {
    a: *const R,
    a_stride: isize,
    b: *const R,
    /// From one column to the next.
    column: isize,
    /// From one index of K to the next.
    k_stride: isize,
}

/// Adds the next term of each sum, and moves past it.
///
/// # Safety
///
/// `V` vectors of `a` and an element in each of `N` columns can be read there.
#[inline(always)]
unsafe fn add_term<S: Isa, R: Compute, const V: usize, const N: usize>(
    isa: S,
    by: impl MulAdd<S, R>,
    at: &mut Cursor<R>,
    sums: &mut [[R::Vector<S>; V]; N],
) {
    // SAFETY: the cursor is at one of the `k` indices: `a` has `V` contiguous vectors there, and `b` elements `column` apart. Pairs of bf16
    // may be aligned to 2 bytes only.
    unsafe {
        let mut vectors = [R::splat(isa, R::default()); V];
        for (v, vector) in vectors.iter_mut().enumerate() {
            *vector = R::load_vector(isa, at.a.add(v * R::lanes::<S>()));
        }
        for (n, sums) in sums.iter_mut().enumerate() {
            let element = R::splat(isa, at.b.offset(n as isize * at.column).read_unaligned());
            for (sum, &vector) in sums.iter_mut().zip(&vectors) {
                *sum = by.add(isa, vector, element, *sum);
            }
        }
    }
    // Wrapping: past the last term lies what may be outside, and is not read.
    at.a = at.a.wrapping_offset(at.a_stride);
    at.b = at.b.wrapping_offset(at.k_stride);
}

/// Stores a tile; `end` maps each register, given its destination, row and column. The last vector of each column is stored only if
/// `with_last`, and all by non-temporal stores if `streams`.
///
/// What `end` does was chosen before, and the counts are known when this is compiled, so that the sums stay in registers.
///
/// # Safety
///
/// `to` has room for these vectors in each of `N` columns, `stride` elements apart, which nothing else reads or writes; if `streams`, before
/// this thread's next [`streaming::fence`], and each vector is aligned, and as large as [`Isa::stream`] takes.
#[inline(always)]
unsafe fn write_vectors<S: Isa, R: Compute, const V: usize, const N: usize>(
    isa: S,
    sums: &[[R::Vector<S>; V]; N],
    (to, stride): (*mut R, isize),
    with_last: bool,
    streams: bool,
    end: impl Fn(R::Vector<S>, *const R, usize, usize) -> R::Vector<S>,
) {
    for (column, sums) in sums.iter().enumerate() {
        for (v, &sum) in sums.iter().enumerate() {
            if v + 1 < V || with_last {
                let row = v * R::lanes::<S>();
                // SAFETY: this is one of the vectors of a column, aligned and of the right size where it is streamed.
                unsafe {
                    let to = to.offset(column as isize * stride).add(row);
                    let x = end(sum, to, row, column);
                    match streams {
                        true => streaming::stream_register(isa, (&raw const x).cast(), to.cast()),
                        false => R::store_vector(isa, x, to),
                    }
                }
            }
        }
    }
}

/// Writes rows of a column, element by element. Edges are few, so this is compiled once, not for each instruction set.
///
/// # Safety
///
/// `to` has room for as many elements as `sums`, which nothing else reads or writes, and which are initialized if they are added
/// to. There is a factor for each row.
#[inline(never)]
unsafe fn write_rows<R: Compute>(sums: &[R], to: *mut R, add: bool, scale: Option<(*const R, R)>) {
    for (row, &sum) in sums.iter().enumerate() {
        // SAFETY: the row is one of those.
        unsafe {
            let mut x = if add { sum + *to.add(row) } else { sum };
            if let Some((rows, column)) = scale {
                x = clamp_to_one(x * (*rows.add(row) * column));
            }
            *to.add(row) = x;
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use burn_core::tensor::bf16;

    use super::{
        super::super::{
            aligned::AlignedBuffer,
            simd::{self, Task},
        },
        *,
    };

    /// Tiles of all sizes, of whole numbers, which floats multiply and add exactly.
    struct EveryTile<R>(core::marker::PhantomData<R>);

    impl<R: Compute> Task for EveryTile<R> {
        type Output = ();

        unsafe fn run<S: Isa>(self, isa: S) {
            let lanes = R::lanes::<S>();
            // Each number of vectors, the last of them with one element, some, and all.
            for rows in
                (1..=S::VECTORS).flat_map(|vectors| [1, lanes.div_ceil(2), lanes].map(|last| (vectors - 1) * lanes + last))
            {
                for columns in [1, 2, 3, 5, 6, 7, 11, 16, 17] {
                    for k in [1, 6, CHAIN, 2 * CHAIN + 3] {
                        for order in [Order::ByVector, Order::ByK] {
                            let width = rows.next_multiple_of(lanes);
                            check::<S, R>((isa, None), k, (rows, columns), width, order);
                            if let (Some(pairs), false) = (isa.pairs(), R::IS_F64) {
                                check::<S, R>((isa, Some(pairs)), k, (rows, columns), width, order);
                            }
                        }
                    }
                }
            }
        }
    }

    fn check<S: Isa, R: Compute>(
        (isa, pairs): (S, Option<S::Pairs>),
        k: usize,
        (rows, columns): (usize, usize),
        width: usize,
        order: Order,
    ) {
        let number = |i: usize| (i % 7) as f64 - 3.0;
        let a = |row: usize, k: usize| number(row + 5 * k);
        let b = |column: usize, k: usize| number(2 * column + 3 * k + 1);
        let element = R::from_f64;
        // An element at an index of K, or a pair.
        let at = |x: &dyn Fn(usize) -> f64, k: usize| match pairs {
            None => element(x(k)),
            Some(_) => {
                let [first, second] = [2 * k, 2 * k + 1].map(|k| u32::from(bf16::from_f64(x(k)).to_bits()));
                element(f32::from_bits(first | second << 16).into())
            }
        };
        let elements_of_k = if pairs.is_some() { 2 * k } else { k };
        // What is beside the rows must not matter.
        let beside = element(f64::NAN);
        let panel: Vec<R> =
            (0..k * width).map(|i| if i % width < rows { at(&|k| a(i % width, k), i / width) } else { beside }).collect();
        let b_at = |column: usize, k: usize| at(&|k| b(column, k), k);
        let (stride, elements): (usize, Vec<R>) = match order {
            Order::ByVector => (k + 2, (0..columns * (k + 2)).map(|i| b_at(i / (k + 2), i % (k + 2))).collect()),
            Order::ByK => (columns + 2, (0..k * (columns + 2)).map(|i| b_at(i % (columns + 2), i / (columns + 2))).collect()),
        };
        // Powers of two, so that scaling is exact, too; some products stay above 1.
        let row_factors: Vec<R> = (0..rows).map(|row| element(2f64.powi(-((row % 3) as i32)))).collect();
        let column_factors: Vec<R> = (0..columns).map(|column| element(2f64.powi(-((column % 2) as i32 + 5)))).collect();
        let sums: Vec<f64> =
            (0..rows * columns).map(|i| (0..elements_of_k).map(|k| a(i % rows, k) * b(i / rows, k)).sum()).collect();
        let ways = [(false, false), (true, false), (false, true), (true, true)].map(|(add, scaled)| (add, scaled, false));
        for (add, scaled, streams) in ways.into_iter().chain([(false, false, true), (false, true, true)]) {
            let before = |i: usize| number(i + 4);
            // Each column on a line of its own, where it is to be streamed.
            let column_stride = if streams { (rows + 3).next_multiple_of(MAX_LANES) } else { rows + 3 };
            let mut buffer = AlignedBuffer::default();
            let to = buffer.resize(columns * column_stride);
            to.iter_mut().enumerate().for_each(|(i, to)| *to = element(before(i)));
            let panel = Panel { at: panel.as_ptr(), k_stride: width as isize };
            let columns_of_b = BroadcastColumns { at: elements.as_ptr(), order, stride: stride as isize };
            let scale = scaled.then_some([row_factors.as_ptr(), column_factors.as_ptr()]);
            // SAFETY: all of them are as large as this tile asks for.
            unsafe {
                let to = (to.as_mut_ptr(), column_stride as isize);
                multiply((isa, pairs), k, panel, columns_of_b, to, (rows, columns), Write { add, scale, streams });
                streaming::fence(isa);
            }
            for (i, given) in to.iter().enumerate() {
                let (column, row) = (i / column_stride, i % column_stride);
                let expected = if row < rows {
                    let sum = sums[column * rows + row] + if add { before(i) } else { 0.0 };
                    let factors = row_factors[row].to_f64() * column_factors[column].to_f64();
                    if scaled { (sum * factors).clamp(-1.0, 1.0) } else { sum }
                } else {
                    before(i)
                };
                let case = (rows, columns, k, order, add, scaled, streams, pairs.is_some());
                assert_eq!(given.to_f64(), expected, "row {row} of column {column} of {case:?}");
            }
        }
    }

    #[test]
    fn tiles_of_every_size_are_exact_by_every_instruction_set() {
        // SAFETY: the tasks have no pointers.
        unsafe {
            simd::for_each_isa(|| EveryTile::<f32>(core::marker::PhantomData));
            simd::for_each_isa(|| EveryTile::<f64>(core::marker::PhantomData));
        }
    }
}
