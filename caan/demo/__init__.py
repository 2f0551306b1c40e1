"""What `caan demo` needs beside the other commands: a data set that is drawn, not downloaded."""
