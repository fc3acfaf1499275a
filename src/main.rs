use std::process::ExitCode;

fn main() -> ExitCode {
    shapefold::cli::main()
}
