//! [`Catalogue`] and [`Search`].

use core::fmt;

use burn_core::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::{
    best::Score,
    error::RetrievalError,
    hits::Hits,
    scan::{Chunks, Exclusions, Scan, Selection},
    similarity::{Similarity, Vectors, all_pairs, score_dtype},
};

/// How errors begin.
const NAME: &str = "Catalogue";

/// Items that queries are answered from: exact top-k by dot product or cosine.
///
/// ```text
/// hits of q = the k items x with the highest score(q, x)
/// ```
///
/// Scores are made in chunks by [`Dot`](burn_dot::Dot), and each chunk is reduced to its best before the next one is made, so that memory
/// beside the inputs is a chunk and `2k` numbers for each query of a chunk, not queries × items. On flex and ndarray the chunk is scanned in memory;
/// on other devices Burn's own top-k picks its best, and only those are read.
///
/// On flex under Linux [`new`](Self::new) copies items of 4 MiB and more to huge pages, which are read sooner; what it was given is freed,
/// unless somebody else holds it.
///
/// # Shapes
///
/// Items are `(N, n)`, queries `(B, n)`, hits `(B, min(k, N))`. No items, no queries or `k = 0` give hits without elements; vectors without
/// elements all score 0.
///
/// # Numerics
///
/// Exact: every score is computed, in f32, or f64 for inputs of f64. Higher scores come first, ties by lowest index, NaN last. For cosines
/// the norms of the items are computed once, by [`new`](Self::new). See [`Similarity`].
///
/// # Gradient
///
/// None: inputs with autodiff are detached, and hits have none.
///
/// # Errors
///
/// [`try_new`](Self::try_new) and [`Search::try_run`] return a [`RetrievalError`]; [`new`](Self::new), [`top_k`](Self::top_k) and
/// [`Search::run`] panic with its text.
///
/// # Source
///
/// `layers.factorized_top_k.BruteForce` of TensorFlow Recommenders, `BruteForceRetrieval` of Keras RS, `util.semantic_search` of
/// sentence-transformers, `IndexFlatIP` of FAISS.
///
/// # Differences from TensorFlow Recommenders
///
/// It asks for `k ≤ N` and identifies items by any value; here answers are shorter, and an item is its row. Its ties have no order. An
/// excluded item may come back with the lowest score there; here it is -1 with score -∞, as FAISS has it.
///
/// ```
/// use burn::prelude::*;
/// use burn_retrieval::{Catalogue, Similarity};
///
/// let device = Device::flex();
/// let items = Tensor::<2>::from_data([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]], &device);
/// let catalogue = Catalogue::new(items, Similarity::Cosine);
///
/// let hits = catalogue.top_k(Tensor::from_data([[2.0, 0.0]], &device), 2);
/// assert_eq!(hits.indices.to_data().iter::<i64>().collect::<Vec<_>>(), [0, 2]);
/// assert_eq!(hits.scores.to_data().iter::<f32>().collect::<Vec<_>>(), [1.0, 0.6]);
/// ```
pub struct Catalogue {
    items: Vectors,
    similarity: Similarity,
    /// The dtype of the scores.
    scores: DType,
}

impl Catalogue {
    /// Takes the items, `(N, n)`.
    ///
    /// # Panics
    ///
    /// With the text of the [`RetrievalError`], where [`try_new`](Self::try_new) returns one.
    #[track_caller]
    pub fn new(items: Tensor<2>, similarity: Similarity) -> Self {
        Self::try_new(items, similarity).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Takes the items, `(N, n)`.
    ///
    /// # Errors
    ///
    /// A dtype that is not f64, f32, f16 or bf16; more items than an index of 31 bits can count; a device that `burn-dot` was built
    /// without, or that cannot be read.
    pub fn try_new(items: Tensor<2>, similarity: Similarity) -> Result<Self, RetrievalError> {
        let dtype = items.dtype();
        let scores = score_dtype(dtype).ok_or(RetrievalError::DType { name: NAME, dtype })?;
        let count = items.dims()[0];
        if count > i32::MAX as usize {
            return Err(RetrievalError::TooManyItems { items: count });
        }
        let items = Vectors::new(burn_dot::in_huge_pages(items.inner()), similarity, scores)?;
        Ok(Catalogue { items, similarity, scores })
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.items.rows.dims()[0]
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How queries and items are compared.
    pub fn similarity(&self) -> Similarity {
        self.similarity
    }

    /// The `k` best items of each query, `(B, n)` → `(B, min(k, N))`. [`search`](Self::search) has more options.
    ///
    /// # Panics
    ///
    /// With the text of the [`RetrievalError`], where [`Search::try_run`] returns one.
    #[track_caller]
    pub fn top_k(&self, queries: Tensor<2>, k: usize) -> Hits {
        self.search(k).run(queries)
    }

    /// A search for the `k` best items of each query, with its options.
    pub fn search(&self, k: usize) -> Search<'_> {
        Search { catalogue: self, k, of_all: &[], of_each: None, chunk: None, selection: None, progress: None }
    }
}

impl fmt::Debug for Catalogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [items, columns] = self.items.rows.dims();
        write!(
            f,
            "Catalogue {{ items: {items}, columns: {columns}, similarity: {:?}, dtype: {:?} }}",
            self.similarity,
            self.items.rows.dtype()
        )
    }
}

/// A search in a [`Catalogue`], made by [`Catalogue::search`].
///
/// ```
/// use burn::prelude::*;
/// use burn_retrieval::{Catalogue, Similarity};
///
/// let device = Device::flex();
/// let items = Tensor::<2>::from_data([[1.0], [4.0], [2.0], [3.0]], &device);
/// let catalogue = Catalogue::new(items, Similarity::Dot);
/// let users = Tensor::<2>::from_data([[1.0], [2.0]], &device);
///
/// // The first user has seen item 1; nobody is to see item 3.
/// let seen = [vec![1], vec![]];
/// let hits = catalogue.search(3).with_exclusions(&seen).with_excluded_items(&[3]).run(users);
/// assert_eq!(hits.indices.to_data().iter::<i64>().collect::<Vec<_>>(), [2, 0, -1, 1, 2, 0]);
/// ```
pub struct Search<'a> {
    catalogue: &'a Catalogue,
    k: usize,
    of_all: &'a [usize],
    of_each: Option<&'a [Vec<usize>]>,
    chunk: Option<usize>,
    selection: Option<Selection>,
    progress: Option<Box<dyn FnMut(usize, usize) + 'a>>,
}

impl<'a> Search<'a> {
    /// Leaves out items for each query: those a user has seen already, say. One list for each query, in any order.
    pub fn with_exclusions(mut self, lists: &'a [Vec<usize>]) -> Self {
        self.of_each = Some(lists);
        self
    }

    /// Leaves out items for every query: rows that only pad the catalogue, say.
    pub fn with_excluded_items(mut self, items: &'a [usize]) -> Self {
        self.of_all = items;
        self
    }

    /// Sets how many items are scored at once; by default so many that a chunk of scores stays in the caches of a CPU, or
    /// keeps a GPU busy.
    pub fn with_chunk(mut self, items: usize) -> Self {
        self.chunk = Some(items);
        self
    }

    /// Calls back after every chunk, with how many pairs of query and item were scored, of how many.
    ///
    /// ```
    /// use burn::prelude::*;
    /// use burn_retrieval::{Catalogue, Similarity};
    ///
    /// let items = Tensor::<2>::ones([5, 2], &Device::flex());
    /// let mut told = Vec::new();
    /// let catalogue = Catalogue::new(items.clone(), Similarity::Dot);
    /// catalogue.search(1).with_chunk(2).with_progress(|done, all| told.push((done, all))).run(items);
    /// assert_eq!(told, [(10, 25), (20, 25), (25, 25)]);
    /// ```
    pub fn with_progress(mut self, progress: impl FnMut(usize, usize) + 'a) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }

    /// Picks the best of a chunk as on a GPU, whatever the device is. Hidden, as only tests compare the two.
    #[doc(hidden)]
    pub fn with_selection_on_device(mut self) -> Self {
        self.selection = Some(Selection::Device);
        self
    }

    /// Answers the queries, `(B, n)` → `(B, min(k, N))`.
    ///
    /// # Panics
    ///
    /// With the text of the [`RetrievalError`], where [`try_run`](Self::try_run) returns one.
    #[track_caller]
    pub fn run(self, queries: Tensor<2>) -> Hits {
        self.try_run(queries).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Answers the queries, `(B, n)` → `(B, min(k, N))`.
    ///
    /// # Errors
    ///
    /// Queries of another length, dtype or device than the items; lists of excluded items for another number of queries, or of items that
    /// do not exist; a chunk of no items; a device that cannot be read. All but the last are found before any arithmetic.
    pub fn try_run(mut self, queries: Tensor<2>) -> Result<Hits, RetrievalError> {
        let exclusions = self.check(&queries)?;
        let queries = queries.inner();
        let (device, count, items) = (queries.device(), queries.dims()[0], self.catalogue.len());
        let k = self.k.min(items);
        let scores = self.catalogue.scores;
        if count * k == 0 {
            return Ok(hits(TensorData::new(Vec::<f32>::new(), [count, k]), Vec::new(), &device, scores));
        }
        let queries = Vectors::new(queries, self.catalogue.similarity, scores)?;
        let selection = self.selection.unwrap_or_else(|| Selection::on(&device));
        let scan = Scan {
            queries: &queries,
            items: &self.catalogue.items,
            dot: all_pairs(scores),
            k,
            chunks: Chunks::new(count, items, selection, self.chunk),
            selection,
            exclusions: &exclusions,
        };
        let mut silence = |_, _| ();
        let progress = self.progress.as_deref_mut().unwrap_or(&mut silence);
        match scores {
            DType::F64 => answer::<f64>(&scan, progress, [count, k], &device),
            _ => answer::<f32>(&scan, progress, [count, k], &device),
        }
    }

    /// Checks what can be wrong, in the order a reader would.
    fn check(&self, queries: &Tensor<2>) -> Result<Exclusions, RetrievalError> {
        let (items, [count, columns]) = (&self.catalogue.items.rows, queries.dims());
        if columns != items.dims()[1] {
            let (queries, shape) = (queries.dims(), items.dims());
            return Err(RetrievalError::Columns { name: NAME, queries, items: "items", shape });
        }
        if queries.dtype() != items.dtype() {
            let (queries, dtype) = (queries.dtype(), items.dtype());
            return Err(RetrievalError::DTypes { name: NAME, queries, items: "items", dtype });
        }
        let (device, of_items) = (queries.device().inner(), items.device());
        if device != of_items {
            let (first, second) = (format!("queries ({device:?})"), format!("items ({of_items:?})"));
            return Err(RetrievalError::Devices { name: NAME, first, second });
        }
        if self.chunk == Some(0) {
            return Err(RetrievalError::EmptyChunk { name: NAME });
        }
        let of_each = self.of_each.unwrap_or(&[]);
        if self.of_each.is_some() && of_each.len() != count {
            return Err(RetrievalError::ExclusionLists { lists: of_each.len(), queries: count });
        }
        let sorted = |items: &[usize]| sorted_items(items, self.catalogue.len());
        Ok(Exclusions {
            of_all: sorted(self.of_all)?,
            of_each: of_each.iter().map(|items| sorted(items)).collect::<Result<_, _>>()?,
        })
    }
}

fn sorted_items(items: &[usize], count: usize) -> Result<Vec<u32>, RetrievalError> {
    if let Some(&item) = items.iter().find(|&&item| item >= count) {
        return Err(RetrievalError::ExcludedItem { item, items: count });
    }
    let mut items: Vec<u32> = items.iter().map(|&item| item as u32).collect();
    items.sort_unstable();
    items.dedup();
    Ok(items)
}

fn answer<S: Score>(
    scan: &Scan,
    progress: &mut dyn FnMut(usize, usize),
    shape: [usize; 2],
    device: &Device,
) -> Result<Hits, RetrievalError> {
    let (scores, indices) = scan.run::<S>(progress)?;
    Ok(hits(TensorData::new(scores, shape), indices, device, S::dtype()))
}

fn hits(scores: TensorData, indices: Vec<i32>, device: &Device, dtype: DType) -> Hits {
    let shape = scores.shape().clone();
    Hits {
        scores: Tensor::from_data(scores, (device, dtype)),
        indices: Tensor::<2, Int>::from_data(TensorData::new(indices, shape), device),
    }
}
