"""A plugin that gives Axolotl ``adapter: bone``, in a file on its path: ``plugins: [axolotl_bone.BonePlugin]``."""

from axolotl.integrations.base import AdapterCapabilities, BasePlugin
from peft import BoneConfig, PeftModel, get_peft_model


class BonePlugin(BasePlugin):
    def get_adapter_capabilities(self):
        return [AdapterCapabilities(name="bone")]

    def load_adapter(self, model, cfg, inference=False, config_only=False):
        if cfg.adapter != "bone":
            return None
        config = BoneConfig(r=cfg.lora_r, target_modules=cfg.lora_target_modules, task_type="CAUSAL_LM")
        if config_only:
            return None, config
        if cfg.lora_model_dir:
            return PeftModel.from_pretrained(model, cfg.lora_model_dir, is_trainable=not inference), config
        return get_peft_model(model, config), config
