//! Two towers: one for misspellings, one for correct words.

use anyhow::Result;
use burn::module::{Initializer, Param};
use burn::prelude::*;
use burn_dot::{Dot, DotConfig};
use burn_retrieval::{Catalogue, InBatchSoftmax, InBatchSoftmaxConfig, Similarity, Temperature};

use crate::features::Features;

/// Words embedded at a time.
const CHUNK: usize = 1024;

/// n-grams → Dense(dim), for each side; the in-batch softmax compares them by the cosine of `Dot`.
#[derive(Module, Debug)]
pub struct Towers {
    pub typos: Param<Tensor<2>>,
    pub words: Param<Tensor<2>>,
    pub loss: InBatchSoftmax,
    dense: Dot,
}

#[derive(Clone, Copy)]
pub enum Side {
    Typos,
    Words,
}

impl Towers {
    /// Both sides begin as the same random projection, in which rare n-grams weigh more: an untrained model compares n-grams already.
    pub fn new(features: &Features, dim: usize, device: &Device) -> Self {
        let rarity = Tensor::<1>::from_data(features.rarity().as_slice(), device).unsqueeze_dim::<2>(1);
        let normal = Initializer::Normal { mean: 0.0, std: (dim as f64).sqrt().recip() };
        let weight = normal.init::<2, _>([features.len(), dim], device).val().inner() * rarity.inner();
        let parameter = || Param::from_tensor(Tensor::<2>::from_data(weight.to_data(), device));
        Towers {
            typos: parameter(),
            words: parameter(),
            loss: InBatchSoftmaxConfig::new().with_temperature(Temperature::Learned(0.05)).init(device),
            dense: DotConfig::new((1, 0)).with_batch_dims(0).init(),
        }
    }

    /// A Dense layer of counts `(words, features)`, without bias.
    pub fn embed(&self, side: Side, counts: Tensor<2>) -> Tensor<2> {
        let weight = match side {
            Side::Typos => self.typos.val(),
            Side::Words => self.words.val(),
        };
        self.dense.forward(counts, weight)
    }

    /// Any number of words, in chunks.
    pub fn embed_all<S: AsRef<str> + Sync>(&self, side: Side, features: &Features, words: &[S], device: &Device) -> Tensor<2> {
        let chunks = words.chunks(CHUNK).map(|words| self.embed(side, features.counts(words, device))).collect();
        Tensor::cat(chunks, 0)
    }

    /// The words, ready to be searched.
    pub fn catalogue<S: AsRef<str> + Sync>(&self, features: &Features, words: &[S], device: &Device) -> Result<Catalogue> {
        Ok(Catalogue::try_new(self.embed_all(Side::Words, features, words, device), Similarity::Cosine)?)
    }
}
