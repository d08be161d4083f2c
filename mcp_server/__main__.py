"""`python -m mcp_server mydb.db`."""

from .cli import mcp

if __name__ == "__main__":
    mcp(prog_name="python -m mcp_server")
