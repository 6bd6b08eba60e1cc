//! Training that can be resumed, and its checkpoints: folders that are there whole, or not at all.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use burn::{module::Module, optim::ModuleOptimizer};
use serde::{Serialize, de::DeserializeOwned};

use super::save_whole;

/// How a run begins.
#[derive(clap::Args)]
pub struct Begin {
    /// Go on from the last checkpoint in the folder
    #[arg(long)]
    resume: bool,
    /// Begin anew where the folder has a checkpoint, and remove it
    #[arg(long, conflicts_with = "resume")]
    fresh: bool,
}

/// Everything that changes as a model is trained; `E` is what is known of an epoch.
pub struct Training<M, E> {
    pub model: M,
    pub optimizer: ModuleOptimizer,
    pub curve: Vec<E>,
}

impl<M: Module, E: Serialize + DeserializeOwned> Training<M, E> {
    pub fn new(model: M, optimizer: ModuleOptimizer) -> Self {
        Training { model, optimizer, curve: Vec::new() }
    }

    /// This state, or that of the last checkpoint, which must be of the same settings. A checkpoint is removed only if that is asked for.
    pub fn begin<S>(self, how: &Begin, checkpoints: &Folder, settings: &S) -> Result<Self>
    where
        S: DeserializeOwned + PartialEq + fmt::Debug,
    {
        if how.resume {
            return checkpoints.load(|folder| {
                let (made_with, curve): (S, _) = serde_json::from_str(&fs::read_to_string(folder.join(PROGRESS))?)?;
                ensure!(made_with == *settings, "it was made with other settings: {made_with:?}, not {settings:?}");
                let model = self.model.try_load_file(folder.join("model.bpk"))?;
                Ok(Training { model, optimizer: self.optimizer.load(folder.join("optimizer.bpk"))?, curve })
            });
        }
        if let (Some(epoch), false) = (checkpoints.epochs().into_iter().max(), how.fresh) {
            let folder = checkpoints.of(epoch);
            anyhow::bail!("{} is of a run that did not end: add --resume to go on, --fresh to begin anew", folder.display());
        }
        checkpoints.clear()?;
        Ok(self)
    }

    pub fn save(&self, checkpoints: &Folder, settings: &impl Serialize) -> Result<()> {
        checkpoints.save(self.curve.len(), |folder| {
            self.model.clone().save_file(folder.join("model.bpk"))?;
            self.optimizer.save(folder.join("optimizer.bpk"))?;
            Ok(fs::write(folder.join(PROGRESS), serde_json::to_string_pretty(&(settings, &self.curve))?)?)
        })
    }
}

/// The file by which a checkpoint is known as one.
const PROGRESS: &str = "progress.json";

/// Where the checkpoints of a run are: `checkpoint-1`, `checkpoint-2`, …, of which the last is kept.
pub struct Folder(pub PathBuf);

impl Folder {
    /// Writes a checkpoint under another name, renames it, and only then removes those before.
    pub fn save(&self, epoch: usize, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let before = self.epochs();
        save_whole(&self.of(epoch), |part| {
            // What a killed run left.
            let _ = fs::remove_dir_all(part);
            fs::create_dir(part)?;
            write(part)
        })?;
        self.remove(before.into_iter().filter(|&before| before != epoch))
    }

    /// Reads the last checkpoint.
    pub fn load<T>(&self, read: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let last = self.epochs().into_iter().max();
        let last = last.with_context(|| format!("there is no checkpoint in {} to resume from", self.0.display()))?;
        let folder = self.of(last);
        read(&folder).with_context(|| format!("cannot resume from {}", folder.display()))
    }

    /// Removes the checkpoints of a run: it is complete, or another one begins.
    pub fn clear(&self) -> Result<()> {
        self.remove(self.epochs().into_iter())
    }

    fn remove(&self, epochs: impl Iterator<Item = usize>) -> Result<()> {
        for epoch in epochs {
            // Renamed first, so that a run that is killed here leaves no part of one.
            let (folder, part) = (self.of(epoch), self.0.join("checkpoint.removed"));
            let _ = fs::remove_dir_all(&part);
            let remove = || fs::rename(&folder, &part).and_then(|()| fs::remove_dir_all(&part));
            remove().with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        Ok(())
    }

    fn of(&self, epoch: usize) -> PathBuf {
        self.0.join(format!("checkpoint-{epoch}"))
    }

    fn epochs(&self) -> Vec<usize> {
        let number = |name: &Path| name.file_name()?.to_str()?.strip_prefix("checkpoint-")?.parse().ok();
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        // Folders of that name that hold something else are left alone.
        entries.filter(|entry| entry.path().join(PROGRESS).is_file()).filter_map(|entry| number(&entry.path())).collect()
    }
}
