"""What the launcher of the flex template starts (FLEX_TEMPLATE_PYTHON_PY_FILE): a file, not a module."""

import sys

from pipeline.engines.template import main

sys.exit(main())
