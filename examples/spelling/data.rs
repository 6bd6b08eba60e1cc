//! Misspellings and their corrections, split by correct word.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::Read,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

/// A misspelling, and the correct word by its index in the vocabulary.
#[derive(Clone, Debug)]
pub struct Pair {
    pub typo: String,
    pub word: usize,
}

/// All correct words, and the pairs of which some are held out.
pub struct Spellings {
    pub words: Vec<String>,
    pub training: Vec<Pair>,
    pub held_out: Vec<Pair>,
    /// Words of which there are training pairs.
    pub training_words: Vec<usize>,
}

/// One word of this many is held out, with all its misspellings.
const HELD_OUT: usize = 10;

impl Spellings {
    /// Reads a CSV file of misspelling and correct word, with a header; `.gz` is unpacked.
    pub fn read(file: &Path, seed: u64) -> Result<Self> {
        let pairs = read_pairs(file)?;
        let words: Vec<String> = pairs.iter().map(|(_, word)| word.clone()).collect::<BTreeSet<_>>().into_iter().collect();
        ensure!(
            words.len() >= 2 * HELD_OUT,
            "{} has {} correct words, too few to hold one of {HELD_OUT} out",
            file.display(),
            words.len()
        );
        let index: HashMap<&str, usize> = words.iter().enumerate().map(|(i, word)| (word.as_str(), i)).collect();
        let pairs = pairs.iter().map(|(typo, word)| Pair { typo: typo.clone(), word: index[word.as_str()] });

        let mut order: Vec<usize> = (0..words.len()).collect();
        order.shuffle(&mut StdRng::seed_from_u64(seed));
        let mut held = vec![false; words.len()];
        order[..words.len() / HELD_OUT].iter().for_each(|&word| held[word] = true);
        let (held_out, training) = pairs.partition(|pair: &Pair| held[pair.word]);
        let training_words = (0..words.len()).filter(|&word| !held[word]).collect();
        Ok(Spellings { words, training, held_out, training_words })
    }
}

/// The misspellings and correct words of such a file.
pub fn read_pairs(file: &Path) -> Result<Vec<(String, String)>> {
    let pairs = parse(file).with_context(|| format!("cannot read {}", file.display()))?;
    ensure!(!pairs.is_empty(), "{} has no pairs after its header", file.display());
    Ok(pairs)
}

fn parse(file: &Path) -> Result<Vec<(String, String)>> {
    let opened = File::open(file)?;
    let unpacked: Box<dyn Read> = match file.extension() {
        Some(extension) if extension == "gz" => Box::new(GzDecoder::new(opened)),
        _ => Box::new(opened),
    };
    let mut pairs = Vec::new();
    for (i, record) in csv::Reader::from_reader(unpacked).records().enumerate() {
        let record = record?;
        let line = record.position().map_or(i as u64 + 2, |position| position.line());
        let (typo, word) = (record.get(0).unwrap_or("").trim(), record.get(1).unwrap_or("").trim());
        ensure!(!typo.is_empty() && !word.is_empty(), "line {line} is not a misspelling and a correct word");
        pairs.push((typo.to_lowercase(), word.to_lowercase()));
    }
    Ok(pairs)
}
