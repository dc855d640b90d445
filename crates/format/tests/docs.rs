//! `docs/format.md` draws every structure with fixed fields; this compares the drawing with the declarations.
//!
//! A drawing is a heading ``### `Name` (N bytes)`` followed by a table whose rows are
//! ``| `field` | offset | bytes | meaning |``.

use aegisfs_format::described;
use aegisfs_format::key::Table;
use std::collections::BTreeMap;

/// A structure as the page draws it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Drawn {
    bytes: usize,
    /// Name, offset and length of each field, in order.
    fields: Vec<(String, usize, usize)>,
}

fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/format.md");
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("docs/format.md cannot be read: {error}"))
}

/// The heading of a drawing: the structure's name and size.
fn heading(line: &str) -> Option<(&str, usize)> {
    let (name, rest) = line.strip_prefix("### `")?.split_once("` (")?;
    Some((name, rest.strip_suffix(" bytes)")?.parse().ok()?))
}

/// A row of a drawing: the field's name, offset, length and meaning.
fn row(line: &str) -> Option<(&str, usize, usize, &str)> {
    let mut cells = line.strip_prefix("| `")?.strip_suffix('|')?.splitn(4, '|').map(str::trim);
    let name = cells.next()?.strip_suffix('`')?;
    let (offset, bytes) = (cells.next()?.parse().ok()?, cells.next()?.parse().ok()?);
    Some((name, offset, bytes, cells.next()?))
}

/// Every drawing of a page, by the structure's name.
fn drawings(text: &str) -> BTreeMap<String, Drawn> {
    let mut found: BTreeMap<String, Drawn> = BTreeMap::new();
    let mut current: Option<(String, Drawn)> = None;
    for line in text.lines() {
        if let Some((name, bytes)) = heading(line) {
            current = Some((name.to_owned(), Drawn { bytes, fields: Vec::new() }));
            continue;
        }
        let Some((name, drawn)) = &mut current else { continue };
        if let Some((field, offset, bytes, meaning)) = row(line) {
            assert!(!meaning.is_empty(), "{name}: field {field} has no meaning");
            drawn.fields.push((field.to_owned(), offset, bytes));
        } else if !drawn.fields.is_empty() {
            // The table ends here; another one below the same heading is about something else.
            let (name, drawn) = current.take().expect("it was just there");
            assert!(found.insert(name.clone(), drawn).is_none(), "{name} is drawn twice");
        }
    }
    if let Some((name, drawn)) = current {
        found.insert(name, drawn);
    }
    found
}

#[test]
fn docs_draw_every_structure_as_it_is_declared() {
    let mut drawn = drawings(&page());
    for (name, bytes, fields) in described() {
        let found = drawn.remove(name).unwrap_or_else(|| panic!("docs/format.md does not draw {name}"));
        let fields = fields.iter().map(|f| (f.name.to_owned(), f.offset, f.bytes)).collect();
        let declared = Drawn { bytes, fields };
        assert_eq!(found, declared, "docs/format.md (left) draws {name} otherwise than the code (right)");
    }
    let names: Vec<_> = drawn.into_keys().collect();
    assert!(names.is_empty(), "docs/format.md draws what the code does not declare: {names:?}");
}

#[test]
fn docs_name_every_table() {
    let page = page();
    for table in Table::ALL {
        let row = format!("\n| {} | {} |", table as u8, table.name());
        assert!(page.contains(&row), "docs/format.md has no table {} {}", table as u8, table.name());
    }
}

#[test]
fn docs_name_every_inode_flag() {
    let page = page();
    for (name, bit) in aegisfs_format::value::INODE_FLAGS {
        let row = format!("\n| {bit:#04x} | {name} |");
        assert!(page.contains(&row), "docs/format.md has no inode flag {bit:#04x} {name}");
    }
}

#[test]
fn docs_declarations_leave_no_gap() {
    for (name, bytes, fields) in described() {
        let mut end = 0;
        for field in fields {
            assert_eq!(field.offset, end, "{name}: before {}", field.name);
            end += field.bytes;
        }
        assert_eq!(end, bytes, "{name}");
    }
}

#[test]
fn docs_parser_reads_drawings_and_nothing_else() {
    let text = "### `XV1` (12 bytes)\n\n| field | offset | bytes | meaning |\n|---|---:|---:|---|\n\
                | `a` | 0 | 8 | One \\| two. |\n| `b` | 8 | 4 | Three. |\nText.\n| `c` | 12 | 1 | No. |\n\
                ### Title\n| `d` | 0 | 1 | No. |\n";
    let drawn = drawings(text);
    let fields = vec![("a".to_owned(), 0, 8), ("b".to_owned(), 8, 4)];
    assert_eq!(drawn, BTreeMap::from([("XV1".to_owned(), Drawn { bytes: 12, fields })]));
    assert!(drawings("### `XV1` (no bytes)\n| `a` | 0 | 8 | One. |\n").is_empty());
}
