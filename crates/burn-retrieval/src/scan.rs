//! The scan over a catalogue: chunks of scores, each scored by `Dot` and reduced to its best before the next one is.

use core::ops::Range;
use std::sync::{Mutex, PoisonError};

use burn_core::tensor::{Device, Tensor, TensorData};
use burn_dot::{Dot, for_each_task};

use crate::{
    best::{Best, Score},
    error::RetrievalError,
    similarity::{Vectors, read},
};

/// Where the best of a chunk are picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    /// From slices of memory.
    Host,
    /// By Burn's top-k; only the best are read.
    Device,
}

impl Selection {
    /// On the host where tensors are in its memory.
    pub fn on(device: &Device) -> Self {
        if burn_dot::is_in_host_memory(device) { Selection::Host } else { Selection::Device }
    }

    /// Scores of a chunk: 4 MiB of f32 stay in the caches of a CPU, 64 MiB keep a GPU busy.
    fn scores(self) -> usize {
        match self {
            Selection::Host => 1 << 20,
            Selection::Device => 1 << 24,
        }
    }
}

/// How the scores of all queries with all items are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunks {
    pub queries: usize,
    pub items: usize,
}

impl Chunks {
    /// Queries of a chunk: enough that the items are read and packed seldom.
    const QUERIES: usize = 1024;
    /// Items of a chunk at most, so that progress can be told.
    const MOST_ITEMS: usize = 1 << 16;

    pub fn new(queries: usize, items: usize, selection: Selection, asked: Option<usize>) -> Self {
        let queries = queries.clamp(1, Self::QUERIES);
        let chosen = asked.unwrap_or((selection.scores() / queries).min(Self::MOST_ITEMS));
        Chunks { queries, items: chosen.clamp(1, items.max(1)) }
    }
}

/// Items that are no hits: some for every query, some for each. Sorted.
#[derive(Default)]
pub(crate) struct Exclusions {
    pub of_all: Vec<u32>,
    pub of_each: Vec<Vec<u32>>,
}

impl Exclusions {
    fn contains(&self, query: usize, item: u32) -> bool {
        let of_this = self.of_each.get(query).map_or(&[][..], |items| items);
        self.of_all.binary_search(&item).is_ok() || of_this.binary_search(&item).is_ok()
    }

    /// The most items that a query can lose.
    fn most(&self) -> usize {
        self.of_all.len() + self.of_each.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// Into how many tasks the queries of a chunk are cut.
const TASKS: usize = 64;

/// One search.
pub(crate) struct Scan<'a> {
    pub queries: &'a Vectors,
    pub items: &'a Vectors,
    pub dot: Dot,
    pub k: usize,
    pub chunks: Chunks,
    pub selection: Selection,
    pub exclusions: &'a Exclusions,
}

/// Some queries with some items.
struct Chunk {
    queries: Range<usize>,
    items: Range<usize>,
}

impl Scan<'_> {
    /// Scores and indices of the hits, row by row. There must be a query, an item, and a k from 1 to the number of items.
    pub fn run<S: Score>(&self, progress: &mut dyn FnMut(usize, usize)) -> Result<(Vec<S>, Vec<i32>), RetrievalError> {
        let (queries, items) = (self.queries.rows.dims()[0], self.items.rows.dims()[0]);
        let (mut scores, mut indices) = (Vec::with_capacity(queries * self.k), Vec::with_capacity(queries * self.k));
        let mut done = 0;
        for queries_of_chunk in ranges(queries, self.chunks.queries) {
            let mut best: Vec<Best<S>> = queries_of_chunk.clone().map(|_| Best::new(self.k, items)).collect();
            for items_of_chunk in ranges(items, self.chunks.items) {
                let chunk = Chunk { queries: queries_of_chunk.clone(), items: items_of_chunk };
                self.offer(&mut best, &chunk)?;
                done += chunk.queries.len() * chunk.items.len();
                progress(done, queries * items);
            }
            for best in best {
                let hits = best.into_sorted();
                let missing = self.k - hits.len();
                for (score, index) in hits {
                    scores.push(score);
                    indices.push(index as i32);
                }
                scores.extend(core::iter::repeat_n(S::NEG_INFINITY, missing));
                indices.extend(core::iter::repeat_n(-1, missing));
            }
        }
        Ok((scores, indices))
    }

    fn offer<S: Score>(&self, best: &mut [Best<S>], chunk: &Chunk) -> Result<(), RetrievalError> {
        let rows = |vectors: &Vectors, rows: &Range<usize>| vectors.rows.clone().slice(rows.clone());
        let scores = self.dot.try_forward(rows(self.queries, &chunk.queries), rows(self.items, &chunk.items))?;
        if self.selection == Selection::Device && self.offer_from_device(best, chunk, scores.clone())? {
            return Ok(());
        }
        self.offer_from_host(best, chunk, scores)
    }

    fn offer_from_host<S: Score>(&self, best: &mut [Best<S>], chunk: &Chunk, scores: Tensor<2>) -> Result<(), RetrievalError> {
        let mut scores = read(scores)?;
        let scores = scores.as_mut_slice::<S>().expect("scores have the dtype they were asked for");
        let factors = self.factors::<S>(chunk);
        // By the threads that shared the product. Those of rayon's parallel iterators are others, and waking them took a tenth longer.
        let (work, rows) = (scores.len(), best.len().div_ceil(TASKS));
        let tasks: Vec<_> = best.chunks_mut(rows).zip(scores.chunks_mut(rows * chunk.items.len())).map(Mutex::new).collect();
        for_each_task(tasks.len(), work, |task| {
            let mut rows_of_task = tasks[task].lock().unwrap_or_else(PoisonError::into_inner);
            let (best, scores) = &mut *rows_of_task;
            for (i, (best, scores)) in best.iter_mut().zip(scores.chunks_mut(chunk.items.len())).enumerate() {
                let query = task * rows + i;
                if let Some((queries, items)) = factors {
                    S::to_cosines(scores, queries[query], items);
                }
                best.offer(scores, chunk.items.start as u32, |item| {
                    self.exclusions.contains(chunk.queries.start + query, item)
                });
            }
        });
        Ok(())
    }

    /// False where the device cannot tell: its top-k may pick any of several ties, and has no rule for NaN.
    fn offer_from_device<S: Score>(
        &self,
        best: &mut [Best<S>],
        chunk: &Chunk,
        scores: Tensor<2>,
    ) -> Result<bool, RetrievalError> {
        let k = self.k.saturating_add(self.exclusions.most());
        if k >= chunk.items.len() {
            return Ok(false);
        }
        let scores = match self.factors::<S>(chunk) {
            None => scores,
            Some((queries, items)) => {
                let factors = |factors: &[S], shape| {
                    let data = TensorData::new(factors.to_vec(), shape);
                    Tensor::<2>::from_data(data, (&scores.device(), scores.dtype()))
                };
                let (queries, items) = (factors(queries, [queries.len(), 1]), factors(items, [1, items.len()]));
                (scores * queries * items).clamp(-1.0, 1.0)
            }
        };
        let (values, indices) = scores.clone().topk_with_indices(k, 1);
        // If no others are as good, and none is NaN, then these are the best, in whatever order.
        let least = values.clone().min_dim(1);
        let as_good = scores.greater_equal(least.clone()).int().sum_dim(1);
        let (values, least, as_good) = (read(values)?, read(least)?, read(as_good)?);
        let values = values.as_slice::<S>().expect("scores have the dtype they were asked for");
        let certain = as_good.iter::<i64>().all(|count| count == k as i64)
            && least.iter::<f64>().all(|score| score > f64::NEG_INFINITY)
            && values.iter().all(|score| score.partial_cmp(score).is_some());
        if !certain {
            return Ok(false);
        }
        let indices = read(indices)?;
        let indices: Vec<u32> = indices.iter::<i64>().map(|index| chunk.items.start as u32 + index as u32).collect();
        for (i, best) in best.iter_mut().enumerate() {
            let row = i * k..(i + 1) * k;
            let hits = values[row.clone()].iter().copied().zip(indices[row].iter().copied());
            best.offer_each(hits, |item| self.exclusions.contains(chunk.queries.start + i, item));
        }
        Ok(true)
    }

    /// What scores are multiplied by to be cosines: that of each query, and that of each item.
    fn factors<S: Score>(&self, chunk: &Chunk) -> Option<(&[S], &[S])> {
        fn of<'a, S: Score>(vectors: &'a Vectors, rows: &Range<usize>) -> Option<&'a [S]> {
            let factors = vectors.factors.as_ref()?.as_slice::<S>().expect("factors have the dtype of the scores");
            Some(&factors[rows.clone()])
        }
        of(self.queries, &chunk.queries).zip(of(self.items, &chunk.items))
    }
}

/// `0..count` in chunks of `size`, the last one maybe shorter.
pub(crate) fn ranges(count: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).step_by(size).map(move |start| start..count.min(start + size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_has_a_bounded_number_of_scores() {
        let table = [
            ((0, 0), (1, 1)),
            ((1, 10), (1, 10)),
            ((1, 1_000_000), (1, 1 << 16)),
            ((256, 100_000), (256, 4096)),
            ((4096, 20_000), (1024, 1024)),
            ((1_000_000, 3), (1024, 3)),
        ];
        for ((queries, items), (of_queries, of_items)) in table {
            let chunks = Chunks::new(queries, items, Selection::Host, None);
            assert_eq!(chunks, Chunks { queries: of_queries, items: of_items }, "{queries} queries, {items} items");
            assert!(chunks.queries * chunks.items <= Selection::Host.scores());
        }
        assert_eq!(Chunks::new(2, 10, Selection::Device, Some(3)).items, 3, "as asked for");
    }

    #[test]
    fn ranges_cover_everything_once() {
        assert_eq!(ranges(7, 3).collect::<Vec<_>>(), [0..3, 3..6, 6..7]);
        assert_eq!(ranges(0, 3).count(), 0);
    }
}
