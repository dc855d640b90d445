//! usage: where the space is.

use crate::commands::living;
use crate::failure::Failure;
use crate::output;
use aegisfs_base::units::format_size;
use std::path::Path;
use std::process::ExitCode;

/// Shows where a mount's space is.
pub(crate) fn run(mount: &Path, as_json: bool) -> Result<ExitCode, Failure> {
    let daemon = living(mount)?;
    let usage = daemon.call("GET", "/v1/usage")?;
    let size = |key: &str| format_size(usage[key].as_u64().unwrap_or(0));
    let lines = vec![
        format!("{:<12} {:>12}   what files refer to", "logical", size("logical_bytes")),
        format!("{:<12} {:>12}   of that, stored once", "unique", size("unique_bytes")),
        format!("{:<12} {:>12}   of that, after compression", "compressed", size("compressed_bytes")),
        format!("{:<12} {:>12}   slots that hold data", "data", size("data_bytes")),
        format!("{:<12} {:>12}   slots that hold metadata and the log", "metadata", size("metadata_bytes")),
        format!("{:<12} {:>12}   free, but not discarded yet", "untrimmed", size("untrimmed_bytes")),
        format!("{:<12} {:>12}   all three together", "physical", size("physical_bytes")),
        format!("{:<12} {:>12}   of {}", "free", size("free_bytes"), size("total_bytes")),
    ];
    output::print(as_json, usage, &lines);
    Ok(ExitCode::SUCCESS)
}
