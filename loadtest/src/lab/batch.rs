//! Many runs: cells × seeds × policies, on some threads. Results are ordered by cell, policy, seed, whichever thread was first.
//! Cells whose trace is not there are skipped, and named.
use std::collections::HashMap;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::RunArgs;
use super::cell::{Cell, Suite};
use super::inputs::Workload;
use super::policies::Policy;
use super::render::Pool;
use super::script::Script;
use super::summary::Summary;
use super::world::World;
use crate::report::Report;

/// What came out of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) cell: String,
    pub(crate) policy: String,
    pub(crate) seed: u64,
    pub(crate) summary: Summary,
}

/// What came out of all.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) runs: Vec<Run>,
    /// Cells that were not run, with the reason.
    #[serde(default)]
    pub(crate) skipped: Vec<(String, String)>,
}

/// A script that is made by whoever needs it first.
type Once = Arc<OnceLock<Arc<Script>>>;
/// A run by the places of its cell and policy, and its seed.
type Task = (usize, usize, u64);

/// Everything to do.
pub(crate) struct Batch {
    cells: Vec<Cell>,
    policies: Vec<Policy>,
    seeds: Vec<u64>,
    traces: PathBuf,
    skipped: Vec<(String, String)>,
    scripts: Mutex<HashMap<(usize, u64), Once>>,
    pool: Pool,
}

impl Batch {
    /// Reads suites and policies.
    pub(crate) fn new(args: &RunArgs) -> io::Result<Self> {
        let (mut cells, mut names, mut inline) = (Vec::new(), args.policies.clone(), Vec::new());
        let mut baselines: Vec<String> = Vec::new();
        for path in &args.suite {
            let mut suite = Suite::read(path)?;
            if !args.loads.is_empty() {
                suite.cells = suite.at_loads(&args.loads);
            }
            if args.policies.is_empty() && args.policy.is_empty() {
                baselines.extend(suite.baselines);
            }
            cells.extend(suite.cells);
            inline.extend(suite.policies);
        }
        let is_asked = |cell: &Cell| args.cell.is_empty() || args.cell.iter().any(|part| cell.name.contains(part));
        cells.retain(is_asked);
        let cells = cells.into_iter().map(|cell| changed(cell, &args.set)).collect::<io::Result<Vec<_>>>()?;
        let (mut there, mut skipped) = (Vec::new(), Vec::new());
        for cell in cells {
            match cell.workload.file().map(|file| args.traces.join(file)).filter(|file| !file.is_file()) {
                Some(file) => skipped.push((cell.name, format!("{} is not there (--traces)", file.display()))),
                None => there.push(cell),
            }
        }
        names.extend(args.policy.iter().cloned());
        for name in baselines {
            // A list may name policies that this build does not have.
            match Policy::of(&name, &args.policies_dir) {
                Ok(_) => names.push(name),
                Err(error) => skipped.push((name, error.to_string())),
            }
        }
        names.dedup();
        let named = names.iter().map(|name| Policy::of(name, &args.policies_dir));
        let inline = inline.into_iter().map(|(name, value)| Policy::with(&name, value, false));
        let policies = named.chain(inline).collect::<io::Result<_>>()?;
        let seeds = (args.seed..args.seed + args.seeds).collect();
        Ok(Self::with(there, policies, seeds, args.traces.clone(), skipped))
    }

    /// A batch of these.
    pub(crate) fn with(
        cells: Vec<Cell>,
        policies: Vec<Policy>,
        seeds: Vec<u64>,
        traces: PathBuf,
        skipped: Vec<(String, String)>,
    ) -> Self {
        Self { cells, policies, seeds, traces, skipped, scripts: Mutex::default(), pool: Pool::new() }
    }

    /// What is to be run.
    pub(crate) fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// Runs all.
    pub(crate) fn run(&self, threads: usize, report: &Report) -> io::Result<Outcome> {
        for (cell, why) in &self.skipped {
            report.say(format!("SKIP  {cell}: {why}"));
        }
        let mut tasks = Vec::new();
        for cell in 0..self.cells.len() {
            for &seed in &self.seeds {
                tasks.extend((0..self.policies.len()).map(|policy| (cell, policy, seed)));
            }
        }
        let next = AtomicUsize::new(0);
        let bar = Bar { done: AtomicUsize::new(0), all: tasks.len(), is_shown: io::stderr().is_terminal() };
        let results: Mutex<Vec<(Task, io::Result<Run>)>> = Mutex::default();
        std::thread::scope(|scope| {
            for _ in 0..threads.clamp(1, 64) {
                scope.spawn(|| {
                    while let Some(&task) = tasks.get(next.fetch_add(1, Relaxed)) {
                        let result = self.one(task, &bar);
                        bar.done.fetch_add(1, Relaxed);
                        results.lock().unwrap_or_else(PoisonError::into_inner).push((task, result));
                    }
                });
            }
        });
        bar.end();
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_by_key(|(task, _)| *task);
        let runs = results.into_iter().map(|(_, result)| result).collect::<io::Result<_>>()?;
        Ok(Outcome { runs, skipped: self.skipped.clone() })
    }

    fn one(&self, (cell, policy, seed): Task, bar: &Bar) -> io::Result<Run> {
        let missing = || io::Error::other("a task names what is not there");
        let (policy, script) = (self.policies.get(policy).ok_or_else(missing)?, self.script(cell, seed)?);
        let cell = self.cells.get(cell).ok_or_else(missing)?;
        let world = World::new(cell, &script, &self.pool, policy, seed);
        let all = script.requests();
        let log = world.run(|ended| bar.show(&cell.name, &policy.name, ended, all));
        let summary = Summary::of(&log, cell);
        Ok(Run { cell: cell.name.clone(), policy: policy.name.clone(), seed, summary })
    }

    /// The script of a cell, made once.
    fn script(&self, at: usize, seed: u64) -> io::Result<Arc<Script>> {
        let cell = self.cells.get(at).ok_or_else(|| io::Error::other("no such cell"))?;
        // These traces are the same for every seed.
        let seed = if matches!(cell.workload, Workload::Mooncake(_) | Workload::Azure(_)) { 0 } else { seed };
        let once = {
            let mut scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(scripts.entry((at, seed)).or_default())
        };
        if let Some(script) = once.get() {
            return Ok(Arc::clone(script));
        }
        let made = Arc::new(cell.workload.script(&self.traces, seed)?);
        Ok(Arc::clone(once.get_or_init(|| made)))
    }
}

/// The cell with settings changed: `path.to.setting=YAML`.
fn changed(cell: Cell, changes: &[String]) -> io::Result<Cell> {
    if changes.is_empty() {
        return Ok(cell);
    }
    let bad = |what: String| io::Error::new(io::ErrorKind::InvalidInput, format!("--set: {what}"));
    let mut value = serde_json::to_value(&cell).map_err(io::Error::other)?;
    for change in changes {
        let (path, new) = change.split_once('=').ok_or_else(|| bad(format!("`{change}`: write PATH=VALUE")))?;
        let new: Value = serde_yaml::from_str(new).map_err(|error| bad(format!("`{change}`: {error}")))?;
        let mut place = &mut value;
        for part in path.split('.') {
            let object = place.as_object_mut().ok_or_else(|| bad(format!("`{path}` leads nowhere")))?;
            place = object.entry(part).or_insert(Value::Null);
        }
        *place = new;
    }
    serde_json::from_value(value).map_err(|error| bad(format!("{error} (cell `{}`)", cell.name)))
}

/// Progress on a terminal; nothing elsewhere.
struct Bar {
    done: AtomicUsize,
    all: usize,
    is_shown: bool,
}

impl Bar {
    fn show(&self, cell: &str, policy: &str, ended: usize, all: usize) {
        if !self.is_shown || !ended.is_multiple_of(16) {
            return;
        }
        let done = self.done.load(Relaxed);
        let full = 30 * done / self.all.max(1);
        let bar: String = (0..30).map(|at| if at < full { '#' } else { '.' }).collect();
        let line = format!("\r[{bar}] {done}/{} {cell} {policy} {}%\x1b[K", self.all, 100 * ended / all.max(1));
        io::stderr().write_all(line.as_bytes()).ok();
    }

    fn end(&self) {
        if self.is_shown {
            io::stderr().write_all(b"\r\x1b[K").ok();
        }
    }
}

impl Outcome {
    /// Reads what `--json` wrote, of several files together.
    pub(crate) fn read(files: &[PathBuf]) -> io::Result<Self> {
        let mut all = Self::default();
        for file in files {
            all.add(file)?;
        }
        Ok(all)
    }

    fn add(&mut self, file: &Path) -> io::Result<()> {
        let named = |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", file.display()));
        let text = std::fs::read_to_string(file).map_err(|error| named(error.to_string()))?;
        let part: Self = serde_json::from_str(&text).map_err(|error| named(error.to_string()))?;
        self.runs.extend(part.runs);
        self.skipped.extend(part.skipped);
        Ok(())
    }

    /// Puts all into the report's JSON.
    pub(crate) fn put(&self, report: &mut Report) -> io::Result<()> {
        report.put("runs", serde_json::to_value(&self.runs).map_err(io::Error::other)?);
        report.put("skipped", serde_json::to_value(&self.skipped).map_err(io::Error::other)?);
        Ok(())
    }

    /// Names of cells, in order.
    pub(crate) fn cells(&self) -> Vec<&str> {
        distinct(self.runs.iter().map(|run| run.cell.as_str()))
    }

    /// Names of policies, in order.
    pub(crate) fn policies(&self) -> Vec<&str> {
        distinct(self.runs.iter().map(|run| run.policy.as_str()))
    }

    /// Runs of one policy on one cell.
    pub(crate) fn of<'a>(&'a self, cell: &'a str, policy: &'a str) -> impl Iterator<Item = &'a Run> {
        self.runs.iter().filter(move |run| run.cell == cell && run.policy == policy)
    }

    /// Mean of a figure over the seeds; `None` without runs.
    pub(crate) fn mean(&self, cell: &str, policy: &str, figure: impl Fn(&Summary) -> f64) -> Option<f64> {
        let values: Vec<f64> = self.of(cell, policy).map(|run| figure(&run.summary)).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut all: Vec<&str> = Vec::new();
    for name in names {
        if !all.contains(&name) {
            all.push(name);
        }
    }
    all
}
