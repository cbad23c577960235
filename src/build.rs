//! Lists the plug-ins, so that adding one is adding one file.
//!
//! For each folder of `src/scheduling/` that holds plug-ins it writes `OUT_DIR/<folder>.rs`: a `mod` line per file, the enum
//! of their settings (externally tagged: `- prefix-hit: {weight: 2}`) and the registry. The folder's `mod.rs` includes it.
//! It also puts `conf/policies/` into the program. Names follow from the file: `prefix_hit.rs` is `prefix-hit` in configuration and `PrefixHit` in the enum.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "how a build script talks to cargo")]
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs, io};

/// Folder, trait, name of the settings enum, doc line.
const KINDS: [(&str, &str, &str); 3] = [
    ("filters", "Filter", "FilterSettings"),
    ("scorers", "Scorer", "ScorerSettings"),
    ("pickers", "Picker", "PickerSettings"),
];

fn main() -> io::Result<()> {
    let root = env::var("CARGO_MANIFEST_DIR").map_err(io::Error::other)?;
    let out = env::var("OUT_DIR").map_err(io::Error::other)?;
    println!("cargo::rerun-if-changed=src/build.rs");
    for (folder, kind, settings) in KINDS {
        let from = Path::new(&root).join("src/scheduling").join(folder);
        println!("cargo::rerun-if-changed={}", from.display());
        let text = listing(&from, kind, settings)?;
        fs::write(Path::new(&out).join(format!("{folder}.rs")), text)?;
    }
    let policies = Path::new(&root).join("conf/policies");
    println!("cargo::rerun-if-changed={}", policies.display());
    fs::write(Path::new(&out).join("policies.rs"), policy_texts(&policies)?)?;
    Ok(())
}

/// A slice of (name, text) of the policies that come with the program.
fn policy_texts(folder: &Path) -> io::Result<String> {
    let mut text = String::from("&[\n");
    for name in names(folder, "yaml")? {
        let place = folder.join(format!("{name}.yaml")).display().to_string();
        writeln!(text, "    ({name:?}, include_str!({place:?})),").map_err(io::Error::other)?;
    }
    Ok(text + "]")
}

/// Names (without `.rs`) of the plug-in files of a folder, sorted.
fn plugins(folder: &Path) -> io::Result<Vec<String>> {
    Ok(names(folder, "rs")?.into_iter().filter(|name| name != "mod").collect())
}

/// Names of the files of a folder with this extension, without it, sorted.
fn names(folder: &Path, wanted: &str) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        if path.extension().is_some_and(|extension| extension == wanted) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// `prefix_hit` as `PrefixHit`.
fn camel(name: &str) -> String {
    let words = name.split('_').map(|word| word.split_at(word.len().min(1)));
    words.map(|(first, rest)| first.to_uppercase() + rest).collect()
}

/// First sentence of a file's header.
fn summary(path: &Path) -> io::Result<String> {
    let text = fs::read_to_string(path)?;
    let first = text.lines().next().unwrap_or_default();
    Ok(first.trim_start_matches("//!").trim().to_owned())
}

fn listing(folder: &Path, kind: &str, settings: &str) -> io::Result<String> {
    let (mut mods, mut variants, mut build, mut names, mut registry) =
        (String::new(), String::new(), String::new(), String::new(), String::new());
    let mut weights = String::new();
    for name in plugins(folder)? {
        let path = folder.join(format!("{name}.rs"));
        let (place, about) = (path.display().to_string(), summary(&path)?);
        let (variant, label) = (camel(&name), name.replace('_', "-"));
        let add = |to: &mut String, line: String| writeln!(to, "{line}").map_err(io::Error::other);
        add(&mut mods, format!("#[path = {place:?}]\npub mod {name};"))?;
        add(&mut variants, format!("    /// {about}\n    {variant}({name}::Settings),"))?;
        add(&mut build, format!("            Self::{variant}(settings) => {name}::build(settings),"))?;
        add(&mut names, format!("            Self::{variant}(_) => {label:?},"))?;
        add(&mut weights, format!("            Self::{variant}(settings) => settings.weight,"))?;
        let default = format!("|| {settings}::{variant}({name}::Settings::default())");
        let source = format!("include_str!({place:?})");
        let entry = format!("    super::plugin::Plugin {{ name: {label:?}, default: {default}, source: {source} }},");
        add(&mut registry, entry)?;
    }
    let weight = if kind == "Scorer" {
        format!(
            "\n    /// How much its cost counts.\n    pub fn weight(&self) -> f64 {{\n        match self {{\n{weights}        }}\n    }}\n"
        )
    } else {
        String::new()
    };
    Ok(format!(
        "{mods}
/// Settings of one plug-in, tagged with its name: `- name: {{...}}`.
#[derive(Clone, Debug, PartialEq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = \"kebab-case\")]
pub enum {settings} {{
{variants}}}

impl {settings} {{
    /// Makes the plug-in.
    pub fn build(&self) -> Box<dyn super::plugin::{kind}> {{
        match self {{
{build}        }}
    }}

    /// Its name in configuration, metrics and explain.
    pub fn name(&self) -> &'static str {{
        match self {{
{names}        }}
    }}
{weight}}}

/// Every plug-in of this folder, by name.
pub const REGISTRY: &[super::plugin::Plugin<{settings}>] = &[
{registry}];
"
    ))
}
