//! The micro-kernel: a tile of the product that stays in registers while it is summed along K.

use super::super::{
    aligned::LINE,
    element::{Compute, clamp_to_one},
    simd::Isa,
};

/// Vectors of a micro-panel: a tile is so many vectors wide.
pub(super) const VECTORS: usize = 2;

/// Terms added to one accumulator before it goes to the tile's total. Each addition loses half a unit in the last place at most; adding the
/// totals costs two operations in a hundred.
const CHAIN: usize = 64;

/// Columns that are broadcast, at two strides.
#[derive(Clone, Copy)]
pub(super) struct BroadcastColumns<T> {
    pub at: *const T,
    /// From one column of the tile to the next.
    pub column: isize,
    /// From one index of K to the next.
    pub k_stride: isize,
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
}

/// The product of a panel and up to [`Isa::COLUMNS`] columns, written to `to`, column by column, `stride` elements apart.
///
/// # Safety
///
/// The panel holds `k` times [`VECTORS`] vectors, or one where `rows` fit in it; `b` so many columns of `k` elements. `to` has
/// room for `rows` elements in each of `columns` columns, which nothing else reads or writes, and which are initialized where
/// they are added to. There is a factor for each row and column.
#[inline(always)]
pub(super) unsafe fn multiply<S: Isa, R: Compute>(
    isa: S,
    k: usize,
    a: Panel<R>,
    b: BroadcastColumns<R>,
    (to, stride): (*mut R, isize),
    (rows, columns): (usize, usize),
    write: Write<R>,
) {
    let mut done = 0;
    // SAFETY: as this function's own; each call takes the next columns.
    unsafe {
        macro_rules! columns {
            ($vectors:expr, $most:expr; $($n:literal)*) => {$(
                // Known when this is compiled: tiles too wide for the instruction set are not.
                if const { $n <= $most } {
                    while columns - done >= $n {
                        let b = BroadcastColumns { at: b.at.offset(done as isize * b.column), ..b };
                        let to = (to.offset(done as isize * stride), stride);
                        let scale = match write.scale {
                            Some([row, column]) => Some([row, column.add(done)]),
                            None => None,
                        };
                        tile::<S, R, { $vectors }, $n>(isa, k, a, b, to, rows, Write { scale, ..write });
                        done += $n;
                    }
                }
            )*};
        }
        if rows > R::lanes::<S>() {
            columns!(VECTORS, S::COLUMNS; 8 4 2 1);
        } else {
            // Half the vectors, twice the columns: the latency of an addition is hidden by as many sums.
            columns!(1, 2 * S::COLUMNS; 16 8 4 2 1);
        }
    }
}

/// [`multiply`], of `N` columns and of rows that fit in `V` vectors.
///
/// # Safety
///
/// As for [`multiply`].
#[inline(always)]
unsafe fn tile<S: Isa, R: Compute, const V: usize, const N: usize>(
    isa: S,
    k: usize,
    a: Panel<R>,
    b: BroadcastColumns<R>,
    (to, stride): (*mut R, isize),
    rows: usize,
    write: Write<R>,
) {
    // SAFETY: as this function's own; a tile whose rows fill `V` vectors is written whole.
    unsafe {
        let sums = accumulate::<S, R, V, N>(isa, k, a, b);
        match (write.add, write.scale) {
            _ if rows < V * R::lanes::<S>() => write_rows(isa, &sums, (to, stride), rows, write),
            (false, None) => write_columns(
                isa,
                sums,
                (to, stride),
                #[inline(always)]
                |x, _, _, _| x,
            ),
            (true, None) => write_columns(
                isa,
                sums,
                (to, stride),
                #[inline(always)]
                |x, to, _, _| R::add_vectors(isa, x, R::load_vector(isa, to)),
            ),
            (add, Some([rows, columns])) => write_columns(
                isa,
                sums,
                (to, stride),
                #[inline(always)]
                |x, to, row, column| {
                    let x = if add { R::add_vectors(isa, x, R::load_vector(isa, to)) } else { x };
                    let factors = R::mul_vectors(isa, R::load_vector(isa, rows.add(row)), R::splat(isa, *columns.add(column)));
                    R::clamp(isa, R::mul_vectors(isa, x, factors), R::from_f64(1.0))
                },
            ),
        }
    }
}

/// The sums of a tile, by chains of [`CHAIN`] terms.
///
/// # Safety
///
/// `a` has `k` times `V` vectors, `b` so many elements in each of `N` columns, all of which can be read.
#[inline(always)]
unsafe fn accumulate<S: Isa, R: Compute, const V: usize, const N: usize>(
    isa: S,
    k: usize,
    a: Panel<R>,
    b: BroadcastColumns<R>,
) -> [[R::Vector<S>; V]; N] {
    let zero = R::splat(isa, R::default());
    let mut totals = [[zero; V]; N];
    let (mut a_at, mut b_at) = (a.at, b.at);
    let mut left = k;
    while left > 0 {
        let chain = left.min(CHAIN);
        let mut sums = [[zero; V]; N];
        for _ in 0..chain {
            // SAFETY: an index of K is left, for which `a` and `b` can be read; the pointers move past the last, and are not read
            // there.
            unsafe {
                let mut vectors = [zero; V];
                for (v, vector) in vectors.iter_mut().enumerate() {
                    *vector = R::load_vector(isa, a_at.add(v * R::lanes::<S>()));
                }
                for (n, sums) in sums.iter_mut().enumerate() {
                    let element = R::splat(isa, *b_at.offset(n as isize * b.column));
                    for v in 0..V {
                        sums[v] = R::mul_add(isa, vectors[v], element, sums[v]);
                    }
                }
            }
            a_at = a_at.wrapping_offset(a.k_stride);
            b_at = b_at.wrapping_offset(b.k_stride);
        }
        for n in 0..N {
            for v in 0..V {
                totals[n][v] = R::add_vectors(isa, totals[n][v], sums[n][v]);
            }
        }
        left -= chain;
    }
    totals
}

/// Writes a whole tile: for each register of sums what `end` makes of it, given where it goes, its row and its column.
///
/// What `end` does was chosen before, and the counts are known when this is compiled, so that the sums stay in registers.
///
/// # Safety
///
/// `to` has room for `V` vectors in each of `N` columns, `stride` elements apart, which nothing else reads or writes.
#[inline(always)]
unsafe fn write_columns<S: Isa, R: Compute, const V: usize, const N: usize>(
    isa: S,
    sums: [[R::Vector<S>; V]; N],
    (to, stride): (*mut R, isize),
    end: impl Fn(R::Vector<S>, *const R, usize, usize) -> R::Vector<S>,
) {
    for (column, sums) in sums.iter().enumerate() {
        for (v, &sum) in sums.iter().enumerate() {
            let row = v * R::lanes::<S>();
            // SAFETY: this is one of the vectors of a column.
            unsafe {
                let to = to.offset(column as isize * stride).add(row);
                R::store_vector(isa, end(sum, to, row, column), to);
            }
        }
    }
}

/// Writes the first rows of a tile.
///
/// # Safety
///
/// As for [`multiply`], of `to`, `rows`, `N` columns and `write`. The rows fit in `V` vectors.
#[inline(always)]
unsafe fn write_rows<S: Isa, R: Compute, const V: usize, const N: usize>(
    isa: S,
    sums: &[[R::Vector<S>; V]; N],
    (to, stride): (*mut R, isize),
    rows: usize,
    write: Write<R>,
) {
    for (n, sums) in sums.iter().enumerate() {
        let mut column = [R::default(); MOST_ROWS];
        // SAFETY: as this function's own; `column` has room for the vectors of one.
        unsafe {
            for (v, &sum) in sums.iter().enumerate() {
                R::store_vector(isa, sum, column[v * R::lanes::<S>()..][..R::lanes::<S>()].as_mut_ptr());
            }
            let scale = write.scale.map(|[rows, columns]| (rows, *columns.add(n)));
            write_part(&column[..rows], to.offset(n as isize * stride), write.add, scale);
        }
    }
}

/// Writes the first rows of a column, element by element. Edges are few, so this is compiled once, not for each instruction set.
///
/// # Safety
///
/// `to` has room for as many elements as `sums`, which nothing else reads or writes, and which are initialized if they are added
/// to. There is a factor for each row.
#[inline(never)]
unsafe fn write_part<R: Compute>(sums: &[R], to: *mut R, add: bool, scale: Option<(*const R, R)>) {
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

/// Rows of the largest tile.
const MOST_ROWS: usize = VECTORS * LINE / size_of::<f32>();
