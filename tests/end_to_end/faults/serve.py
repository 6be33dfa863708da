"""`appliance serve` that starts what fell again at once: faults come faster than in life."""

import sys
from pathlib import Path

from appliance import logs, supervisor
from appliance.config import Settings


def main() -> None:
    """Run the supervisor on the settings that the command line names."""
    vars(supervisor).update(FIRST_DELAY_S=0.1, LONGEST_DELAY_S=0.5, STEADY_S=3.0)
    logs.configure("supervisor")
    settings = Settings.load(Path(sys.argv[1]))
    supervisor.Supervisor(settings, logs=settings.data_dir.parent / "logs").run()


if __name__ == "__main__":
    main()
