"""Training-data attribution: which training samples made a language model say that?

The public names are listed in `__init__.pyi`. Each is imported when it is first used, so that a process which needs
only `errors` or the schemas, such as the web service, never imports torch.
"""

import lazy_loader

from bergson_core.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
