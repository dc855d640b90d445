//! Rounds, medians and spreads, and the bars that figures are held against.

use super::targets::{Kind, Target};
use anyhow::Result;
use std::collections::BTreeMap;
use std::time::Instant;

/// Runs of each row.
pub(super) const ROUNDS: usize = 3;
/// A larger spread than this is measured once more.
const SPREAD_MAX: f64 = 0.25;
/// After so many seconds nothing is measured again and no row begins.
pub(super) const SECONDS_MAX: f64 = 45.0 * 60.0;

/// A median, and how far the runs lie apart in parts of it.
#[derive(Clone, Copy)]
pub(super) struct Figure {
    pub(super) median: f64,
    spread: f64,
}

impl Figure {
    pub(super) fn of(mut runs: Vec<f64>) -> Self {
        runs.sort_by(f64::total_cmp);
        let median = runs[runs.len() / 2];
        let width = runs[runs.len() - 1] - runs[0];
        Self { median, spread: if median == 0.0 { 0.0 } else { width / median } }
    }

    fn is_steady(self) -> bool {
        self.spread <= SPREAD_MAX
    }
}

/// One quantity of a row.
pub(super) struct Quantity {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
}

/// What a row measured: a figure for each target and quantity.
pub(super) struct Figures {
    list: BTreeMap<(Kind, usize), Figure>,
}

impl Figures {
    pub(super) fn get(&self, kind: Kind, quantity: usize) -> Option<f64> {
        self.list.get(&(kind, quantity)).map(|figure| figure.median)
    }

    /// Ours in parts of another's.
    pub(super) fn against(&self, other: Kind, quantity: usize) -> Option<f64> {
        Some(self.get(Kind::Aegis, quantity)? / self.get(other, quantity)?)
    }
}

/// What a bar asks for.
#[derive(Clone, Copy)]
pub(super) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// A bar, and how far we came.
struct Bar {
    text: String,
    bound: Bound,
    figure: Option<f64>,
}

/// Everything that a run says at its end.
pub(super) struct Report {
    start: Instant,
    bars: Vec<Bar>,
    /// Rows whose data did not verify, or that could not be run.
    pub(super) failures: Vec<String>,
}

impl Report {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), bars: Vec::new(), failures: Vec::new() }
    }

    /// Whether there is time for more.
    pub(super) fn has_time(&self) -> bool {
        self.start.elapsed().as_secs_f64() < SECONDS_MAX
    }

    /// Runs something on all targets in turn, in rounds, and prints a line for each quantity that it returns.
    /// `work` gets a seed that it has not had before.
    pub(super) fn compare(
        &self,
        targets: &mut [Target],
        quantities: &[Quantity],
        mut work: impl FnMut(&mut Target, u64) -> Result<Vec<f64>>,
    ) -> Result<Figures> {
        let mut list = BTreeMap::new();
        let mut seed = 0;
        for _ in 0..2 {
            let unsteady = |kind: Kind| {
                (0..quantities.len())
                    .any(|n| list.get(&(kind, n)).is_none_or(|figure: &Figure| !figure.is_steady()))
            };
            let again: Vec<Kind> = targets.iter().map(|t| t.kind).filter(|kind| unsteady(*kind)).collect();
            if !list.is_empty() && !self.has_time() {
                break;
            }
            let mut runs: BTreeMap<(Kind, usize), Vec<f64>> = BTreeMap::new();
            for _ in 0..ROUNDS {
                seed += 1;
                for target in targets.iter_mut().filter(|target| again.contains(&target.kind)) {
                    for (n, value) in work(target, seed)?.into_iter().enumerate() {
                        runs.entry((target.kind, n)).or_default().push(value);
                    }
                }
            }
            for (key, values) in runs {
                let figure = Figure::of(values);
                let kept = list.entry(key).or_insert(figure);
                if figure.spread < kept.spread {
                    *kept = figure;
                }
            }
        }
        let figures = Figures { list };
        for (n, quantity) in quantities.iter().enumerate() {
            print_row(quantity, n, &figures);
        }
        Ok(figures)
    }

    /// Holds a figure against a bar of the issue; a figure that is missing does not meet it.
    pub(super) fn bar(&mut self, text: &str, bound: Bound, figure: Option<f64>) {
        self.bars.push(Bar { text: text.to_owned(), bound, figure });
    }

    /// Notes that a row went wrong; the run goes on and fails at its end.
    pub(super) fn fail(&mut self, what: String) {
        println!("  FAILED: {what}");
        self.failures.push(what);
    }

    /// The table at the end.
    pub(super) fn print(&self) {
        println!("\n{:<64} {:>9} {:>9}", "bar", "asked", "reached");
        for bar in &self.bars {
            let (sign, asked) = match bar.bound {
                Bound::AtLeast(asked) => (">=", asked),
                Bound::AtMost(asked) => ("<=", asked),
            };
            let verdict = match (bar.figure, bar.bound) {
                (None, _) => "NOT MEASURED",
                (Some(figure), Bound::AtLeast(asked)) if figure >= asked => "met",
                (Some(figure), Bound::AtMost(asked)) if figure <= asked => "met",
                _ => "NOT MET",
            };
            let figure = bar.figure.map_or("-".into(), number);
            println!("{:<64} {:>9} {figure:>9}  {verdict}", bar.text, format!("{sign} {}", number(asked)));
        }
        println!("{} s in all", self.start.elapsed().as_secs());
    }
}

/// Prints the heads of the columns.
pub(super) fn print_heads() {
    print!("{:<44}", "row");
    for kind in Kind::ALL {
        print!(" {:>14}", kind.name());
    }
    println!("  to ext4");
}

fn print_row(quantity: &Quantity, n: usize, figures: &Figures) {
    print!("{:<44}", format!("{} ({})", quantity.name, quantity.unit));
    for kind in Kind::ALL {
        let text = figures.list.get(&(kind, n)).map_or("-".into(), |figure| {
            // A spread that stayed large is marked.
            let mark = if figure.is_steady() { "" } else { "!" };
            format!("{} ±{:.0}%{mark}", number(figure.median), figure.spread * 50.0)
        });
        print!(" {text:>14}");
    }
    println!("  {}", figures.against(Kind::Ext4, n).map_or("-".into(), |ratio| format!("{ratio:.2}")));
}

/// As many digits as say something.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}
